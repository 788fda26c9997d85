"""Values and derivatives of torch code that runs other kernels on a GPU, compared with native torch on the GPU."""

from __future__ import annotations

import contextlib
import functools
import traceback
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from t2j_autodiff import module2jax, torch2jax
from t2j_core import DataDependentShapeError, T2jWarning, j2t
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")

S = jax.ShapeDtypeStruct


@pytest.fixture(autouse=True)
def _without_tf32():
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with jax.default_matmul_precision("highest"):
        yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def tensor(array):
    """A copy on the same device that is complete before the array can be freed."""
    copy = j2t(array).clone()
    if copy.is_cuda:
        torch.cuda.synchronize()
    return copy


def host(value):
    return value.detach().float().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value, np.float32)


def close(mine, other, tolerance=1e-4, label=""):
    mine, other = host(mine), host(other)
    scale = max(1.0, float(np.abs(other).max(initial=0)))
    np.testing.assert_allclose(mine, other, rtol=tolerance, atol=tolerance * scale, err_msg=label)


# --- derivatives and batches of functions of one tensor to a number --------------------------------------------------


def on(x, *values, dtype=None):
    return torch.tensor(values, device=x.device, dtype=dtype)


def asks(x):
    return ((x if x.requires_grad else x.detach()).sin() * x).sum()


def limits_its_gradient(x):
    h = torch.sin(x)
    if h.requires_grad:
        h.register_hook(lambda g: g.clamp(-0.1, 0.1))
    for _ in range(15):
        h = torch.sin(h)
    return h.sum()


class Adjoint(torch.autograd.Function):
    """Like the adjoint method of solvers: the backward integrates again."""

    @staticmethod
    def forward(ctx, y, w):
        ctx.save_for_backward(y, w)
        with torch.no_grad():
            for _ in range(5):
                y = y + 0.1 * torch.tanh(w @ y)
        return y

    @staticmethod
    def backward(ctx, ct):
        y, w = ctx.saved_tensors
        with torch.enable_grad():
            start, weight = y.detach().requires_grad_(), w.detach().requires_grad_()
            z = start
            for _ in range(5):
                z = z + 0.1 * torch.tanh(weight @ z)
            return torch.autograd.grad(z, (start, weight), ct)


def force(x):
    if not x.requires_grad:
        x = x.detach().requires_grad_()
    with torch.enable_grad():
        (f,) = torch.autograd.grad((x**4).sum(), x, create_graph=True)
    return (f * f).sum()


def attention(x, **options):
    return (F.scaled_dot_product_attention(x, x.sin(), x * 0.5, **options) ** 2).sum()


def symmetric(x):
    return x @ x.mT + 3 * torch.eye(x.shape[-1], device=x.device)


def mixed(x):
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        return (x @ x.sin().mT).float().square().mean()


@functools.cache
def seeded(make, device):
    """A module on a device, with the same weights as on any other device."""
    torch.manual_seed(0)
    return make().to(device)


def lstm():
    return torch.nn.LSTM(4, 6, num_layers=2, batch_first=True)


def gru():
    return torch.nn.GRU(4, 6, batch_first=True, bidirectional=True)


def encoder():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 2).eval()


def batch_norm():
    return torch.nn.BatchNorm1d(8)


def heads():
    return torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()


def masked_heads(x):
    mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    mask[:, -1] = True
    return (seeded(heads, x.device)(x, x, x, key_padding_mask=mask)[0] ** 2).sum()


def padded_encoder(x):
    mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    mask[:, -1] = True
    return (seeded(encoder, x.device)(x, src_key_padding_mask=mask)[:, :-1] ** 2).sum()


def bag(x, mode):
    return (F.embedding_bag(on(x, 0, 2, 1, 3, 3), x, on(x, 0, 2), mode=mode) ** 2).sum()


def grid(x):
    places = torch.stack(torch.meshgrid(*2 * [torch.linspace(-0.83, 0.79, 4, device=x.device)], indexing="xy"), -1)
    return (F.grid_sample(x, places[None], align_corners=False) ** 2).sum()


def indexed(x):
    return (x.index_put((on(x, 0, 0, 1),), x[:3], accumulate=True) ** 2).sum()


FUNCTIONS = {
    "scatter_reduce prod": (
        lambda x: x.new_ones(2).scatter_reduce(0, on(x, 0, 1, 0, 1, 0), x, "prod").sin().sum(),
        (5,),
    ),
    "asks requires_grad": (asks, (5,)),
    "limits its gradient": (limits_its_gradient, (3,)),
    "embedding with padding": (lambda x: F.embedding(on(x, 0, 1, 2, 0), x, padding_idx=0).sin().sum(), (4, 3)),
    "embedding_bag sum": (functools.partial(bag, mode="sum"), (4, 3)),
    "embedding_bag mean": (functools.partial(bag, mode="mean"), (4, 3)),
    "embedding_bag max": (functools.partial(bag, mode="max"), (4, 3)),
    "layer_norm": (lambda x: (F.layer_norm(x, (6,)) ** 3).sum(), (4, 6)),
    "batch_norm 1d": (lambda x: (F.batch_norm(x, None, None, training=True) ** 3).sum(), (5, 3)),
    "batch_norm 2d": (lambda x: (F.batch_norm(x, None, None, training=True) ** 3).sum(), (2, 3, 4, 4)),
    "group_norm": (lambda x: (F.group_norm(x, 2) ** 3).sum(), (2, 4, 3)),
    "instance_norm": (lambda x: (F.instance_norm(x) ** 3).sum(), (2, 3, 5)),
    "attention": (attention, (1, 2, 8, 16)),
    "causal attention": (functools.partial(attention, is_causal=True), (1, 2, 8, 16)),
    "checkpointed attention": (lambda x: checkpoint(attention, x, use_reentrant=False), (1, 2, 8, 16)),
    "multihead attention with padding": (masked_heads, (2, 5, 8)),
    "encoder": (lambda x: (seeded(encoder, x.device)(x) ** 3).sum(), (2, 5, 8)),
    "encoder with padding": (padded_encoder, (2, 5, 8)),
    "lstm": (lambda x: (seeded(lstm, x.device)(x)[0] ** 2).sum(), (2, 5, 4)),
    "gru": (lambda x: (seeded(gru, x.device)(x)[0] ** 2).sum(), (2, 5, 4)),
    "conv2d": (lambda x: (F.conv2d(x, x[:1, :, :3, :3].sin()).tanh() ** 2).sum(), (2, 3, 6, 6)),
    "conv_transpose1d": (lambda x: F.conv_transpose1d(x, x[:, :, :3].cos(), stride=2).tanh().sum(), (3, 3, 6)),
    "interpolate": (lambda x: (F.interpolate(x, scale_factor=2.0, mode="bicubic") ** 2).sum(), (1, 2, 4, 4)),
    "grid_sample": (grid, (1, 2, 5, 5)),
    "max_pool2d": (lambda x: (F.max_pool2d(x, 2) ** 3).sum(), (1, 2, 4, 4)),
    "index_put": (indexed, (4, 3)),
    "cumprod": (lambda x: x.cumprod(0).sin().sum(), (5,)),
    "fft": (lambda x: torch.fft.rfft(x).abs().square().sum().sqrt(), (8,)),
    "autocast": (mixed, (4, 4)),
    "solve": (lambda x: torch.linalg.solve(symmetric(x), x).sin().sum(), (4, 4)),
    "eigh": (lambda x: (torch.linalg.eigvalsh(symmetric(x)) ** 2).sum(), (4, 4)),
    "svd": (lambda x: torch.linalg.svdvals(x).log().sum(), (4, 4)),
    "cholesky": (lambda x: torch.linalg.cholesky(symmetric(x)).sin().sum(), (4, 4)),
    "det": (lambda x: torch.linalg.det(symmetric(x)).log(), (4, 4)),
    "qr": (lambda x: torch.linalg.qr(x)[1].abs().log1p().sum(), (4, 4)),
    "force": (force, (4,)),
    "adjoint": (lambda x: Adjoint.apply(x, torch.eye(3, device=x.device) * 0.5).sin().sum(), (3,)),
}

FIRST_ONLY = {"limits its gradient", "adjoint"}
"""What native torch gives no right second derivative of."""

NOT_LINEAR = {"limits its gradient"}
"""Whose pullback is not linear, so that no pushforward belongs to it."""

TOLERANCES = {"autocast": 5e-2, "checkpointed attention": 1e-3, "svd": 1e-3, "solve": 1e-3, "det": 1e-3}


def native_gradient(fn, x, create_graph=False):
    x = tensor(x).requires_grad_()
    return x, torch.autograd.grad(fn(x), x, create_graph=create_graph)[0]


def native_product(fn, x, v):
    """The product of the Hessian and a vector. Other kernels than the selected one have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        x, g = native_gradient(fn, x, create_graph=True)
        return torch.autograd.grad((g * tensor(v)).sum(), x)[0]


class Findings:
    """Collect the failures of several checks, and report all of them at the end."""

    def __init__(self, note):
        self.texts, self.note = [], note

    @contextlib.contextmanager
    def of(self, what, refusal="nothing"):
        try:
            yield
        except Exception as error:
            text = "".join(traceback.format_exception_only(error))
            if refusal in text:  # under `jax.jit` it is the text of an XLA error
                self.note(f"refused: {what}", text[:300])
            else:
                where = " < ".join(f"{f.name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[:-5:-1])
                self.texts.append(f"--- {what}: {text[:1200]}\nin {where}")

    def tell(self):
        assert not self.texts, f"{len(self.texts)} fail\n" + "\n".join(self.texts)


@pytest.mark.thinned(7)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_derivatives(place, name, record_property):
    (fn, shape), tolerance = FUNCTIONS[name], TOLERANCES.get(name, 1e-4)
    f, xs, v = torch2jax(fn), normal(3, *shape), normal(*shape, seed=1)
    gradients = [native_gradient(fn, x)[1] for x in xs]
    with torch.no_grad():
        values = [fn(tensor(x)) for x in xs]
    found = Findings(record_property)
    with found.of("value"):
        close(f(xs[0]), values[0], tolerance)
    with found.of("value, jit"):
        close(jax.jit(f)(xs[0]), values[0], tolerance)
    with found.of("grad"):
        close(jax.grad(f)(xs[0]), gradients[0], tolerance)
    with found.of("grad, jit, three calls"):
        compiled = jax.jit(jax.grad(f))
        for x, gradient in zip(xs, gradients, strict=True):
            close(compiled(x), gradient, tolerance)
    if name not in NOT_LINEAR:
        with found.of("jvp", "NonDifferentiableError"):
            close(jax.jvp(f, (xs[0],), (v,))[1], (tensor(v) * gradients[0]).sum(), tolerance)
    with found.of("vmap"):
        close(jax.vmap(f)(xs), torch.stack(values), tolerance)
    with found.of("vmap(grad)"):
        close(jax.vmap(jax.grad(f))(xs), torch.stack(gradients), tolerance)
    with found.of("grad(vmap), jit"):
        close(jax.jit(jax.grad(lambda xs: jax.vmap(f)(xs).sum()))(xs), torch.stack(gradients), tolerance)
    found.tell()


@pytest.mark.thinned(7)
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in FIRST_ONLY])
def test_second_derivatives(place, name, record_property):
    (fn, shape), tolerance = FUNCTIONS[name], 10 * TOLERANCES.get(name, 1e-4)
    f, x, v = torch2jax(fn), normal(*shape), normal(*shape, seed=1)
    try:
        expected = native_product(fn, x, v)
    except RuntimeError as error:
        record_property("native torch", str(error)[:300])
        expected = None
    ways = {
        "reverse over reverse": lambda x: jax.grad(lambda x: (jax.grad(f)(x) * v).sum())(x),
        "forward over reverse": lambda x: jax.jvp(jax.grad(f), (x,), (v,))[1],
        "reverse over forward": lambda x: jax.grad(lambda x: jax.jvp(f, (x,), (v,))[1])(x),
    }
    found = Findings(record_property)
    for way, product in ways.items():
        with found.of(way, "NonDifferentiableError"):
            got = product(x)
            if expected is not None:
                close(got, expected, tolerance)
        with found.of(f"{way}, jit and vmap", "NonDifferentiableError"):
            got = jax.jit(jax.vmap(product))(jnp.stack([x, x]))
            if expected is not None:
                close(got, torch.stack([expected, expected]), tolerance)
    found.tell()


# --- what a function writes, keeps and asks --------------------------------------------------------------------------


def through_data(x, y):
    x.data.mul_(2)
    return x + y


def through_a_view(x, y):
    x.view(-1)[:2].copy_(y[:2])
    return x * 2


def through_set(x, y):
    torch.add(x, y, out=x)
    return x * 1


@pytest.mark.parametrize("fn", [through_data, through_a_view, through_set])
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_undeclared_writes_leave_the_arrays(place, fn, jitted):
    f = torch2jax(fn, output_shapes=S((4,), jnp.float32))
    f = jax.jit(f) if jitted else f
    x, y = normal(4), normal(4, seed=1)
    before, expected = np.array(x), fn(tensor(x), tensor(y))
    for number in range(6):
        close(f(x, y), expected, label=f"result of call {number}")
        close(x, before, label=f"argument after call {number}")


def test_running_statistics_as_arguments_are_not_written(place):
    f = torch2jax(lambda x, m, v: F.batch_norm(x, m, v, training=True))
    x, m, v = normal(4, 3, 5), jnp.zeros(3), jnp.ones(3)
    expected = F.batch_norm(tensor(x), torch.zeros(3).to(place.torch), torch.ones(3).to(place.torch), training=True)
    for call in (f, jax.jit(f)):
        for number in range(5):
            close(call(x, m, v), expected, label=f"result of call {number}")
            close(m, np.zeros(3), label=f"mean after call {number}")
            close(v, np.ones(3), label=f"variance after call {number}")


@pytest.mark.thinned(2)
@pytest.mark.parametrize("begins", [0, 5])
@pytest.mark.parametrize("what", ["attribute", "view", "graph"])
def test_what_is_kept_of_an_argument_keeps_its_values(place, what, begins):
    flag, kept = [], []
    weight = torch.ones(3, device=place.torch, requires_grad=True)

    def f(x):
        if flag and what == "graph":
            with torch.enable_grad():
                kept.append((x * weight).sum())
        elif flag:
            kept.append(x if what == "attribute" else x[1:])
        return x + 1

    g = jax.jit(torch2jax(f, output_shapes=S((3,), jnp.float32)))
    for _ in range(begins):
        g(jnp.ones(3)).block_until_ready()
    flag.append(1)
    for i in range(4):
        close(g(jnp.full(3, float(i))), np.full(3, i + 1.0))
    others = [jnp.full(3, 9.0).block_until_ready() for _ in range(50)]
    if what == "graph":
        kept = [torch.autograd.grad(y, weight)[0] for y in kept]
    assert [set(t.tolist()) for t in kept] == [{float(i)} for i in range(4)]
    del others


def test_a_module_that_keeps_tensors_in_containers(place):
    class Caches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.b, self.doubled, self.seen = torch.nn.Parameter(torch.ones(3)), {}, []

        def forward(self, x):
            if "b" not in self.doubled:
                self.doubled["b"] = 2 * self.b
            self.seen.append(x)
            return x + self.doubled["b"]

    apply, variables = module2jax(Caches().to(place.torch).eval())
    x = jnp.zeros(3)
    close(apply(variables, x), np.full(3, 2.0))
    for scale in (10.0, 5.0):
        changed = {"params": {"b": jnp.full(3, scale)}, "buffers": {}}
        close(apply(changed, x), np.full(3, 2 * scale))
        gradient = jax.jit(jax.grad(lambda v: apply(v, x).sum()))(changed)
        close(gradient["params"]["b"], np.full(3, 2.0))


def test_a_number_of_a_tensor_under_jit(place):
    def f(x):
        return x * x.max().item() if x.sum() > 0 else -x

    g = jax.jit(torch2jax(f, output_shapes=S((3,), jnp.float32)))
    for values in ([1.0, 2.0, 3.0], [-1.0, -2.0, 0.5], [4.0, 0.0, 0.0]):
        close(g(jnp.array(values)), f(torch.tensor(values)))


def test_a_shape_that_follows_from_values_is_told(place):
    for call in (f := torch2jax(lambda x: x.nonzero()), jax.jit(f)):
        with pytest.raises(DataDependentShapeError, match="depend on the values of its inputs"):
            call(jnp.arange(3.0))


class Mine(Exception):
    pass


@pytest.mark.parametrize("transform", ["eager", "grad", "vmap", "vmap of grad"])
def test_exceptions_keep_their_type(place, transform):
    armed = []

    def fn(x):
        if armed:
            raise Mine("of the function")
        return (x * x).sum()

    f = torch2jax(fn)
    wrapped = {"eager": f, "grad": jax.grad(f), "vmap": jax.vmap(f), "vmap of grad": jax.vmap(jax.grad(f))}[transform]
    x = jnp.ones((2, 3))
    expected = np.asarray(jax.block_until_ready(wrapped(x)))
    armed.append(1)
    with pytest.raises(Mine, match="of the function"):
        jax.block_until_ready(wrapped(x))
    armed.clear()
    close(wrapped(x), expected)


# --- random numbers --------------------------------------------------------------------------------------------------


def test_dropout_by_keys(place):
    f = torch2jax(lambda x: F.dropout(x, 0.5) * x, rng=True)
    x, keys = jnp.ones((3, 64)), jax.random.split(jax.random.key(0), 3)
    y = f(keys[0], x[0])
    assert 8 < int((y == 0).sum()) < 56, y
    close(jax.jit(f)(keys[0], x[0]), y, label="jit")
    close(jax.grad(lambda x: f(keys[0], x).sum())(x[0]), 2 * y, label="grad")
    close(jax.jit(jax.grad(lambda x: f(keys[0], x).sum()))(x[0]), 2 * y, label="grad, jit")
    rows = jax.vmap(f)(keys, x)
    assert not (rows[0] == rows[1]).all(), "two keys give the same numbers"
    close(jax.vmap(f)(keys, x), rows, label="vmap again")
    gradients = jax.vmap(jax.grad(lambda x, k: f(k, x).sum()))(x, keys)
    assert set(np.unique(gradients).tolist()) == {0.0, 4.0}
    scanned = jax.jit(lambda: jax.lax.scan(lambda c, k: (c, f(k, x[0])), 0, keys))()[1]
    close(scanned, jnp.stack([f(k, x[0]) for k in keys]), label="scan")


# --- programs --------------------------------------------------------------------------------------------------------


def branches(module):
    return [
        lambda t: module.tanh(module.sin(t) * t).sum(),
        lambda t: (module.exp(-t * t) * module.cos(t)).sum(),
        lambda t: (t**3).sum(),
    ]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("kind", ["cond", "switch", "scan", "while"])
def test_control_flow_of_functions_in_batches_of_gradients(place, kind):
    def program(fs, i, x):
        if kind == "cond":
            return jax.lax.cond(i > 0, fs[0], fs[1], x)
        if kind == "switch":
            return jax.lax.switch(i, fs, x)
        if kind == "scan":
            return jax.lax.scan(lambda c, _: (0.5 * c + fs[0](c + 0.1 * x), None), x[0], length=4)[0]
        return jax.lax.fori_loop(0, 3, lambda _, c: 0.5 * c + fs[1](c + 0.1 * x), x[0])

    i, x = jnp.array([0, 2, 1, 0]), normal(4, 16)
    mine = [torch2jax(f) for f in branches(torch)]
    for wrap in (lambda f: f, jax.jit):
        results = [wrap(jax.vmap(jax.grad(functools.partial(program, fs), 1)))(i, x) for fs in (mine, branches(jnp))]
        close(*results, label=f"vmap(grad), {wrap.__name__}")
    total = lambda fs: jax.jit(jax.grad(lambda x: jax.vmap(functools.partial(program, fs))(i, x).sum()))(x)
    close(total(mine), total(branches(jnp)), label="grad(vmap)")


def test_pullbacks_of_a_batch_in_another_order(place):
    def heavy(module, x):
        for _ in range(15):
            x = module.sin(x) + 0.5 * x
        return x

    x, ct = normal(4, 8), normal(4, 8, seed=1)
    results = []
    for f in (torch2jax(functools.partial(heavy, torch)), functools.partial(heavy, jnp)):
        pull = jax.vmap(lambda x, f=f: jax.vjp(f, x)[1])(x)
        apply = jax.vmap(lambda p, c: p(c)[0])
        backwards = jax.tree.map(lambda a: a[::-1], pull)
        results.append((apply(pull, ct), apply(backwards, ct), apply(pull, ct)))
    for label, mine, other in zip(("in order", "backwards", "in order again"), *results, strict=True):
        close(mine, other, label=label)


def test_linear_functions_are_transposed(place):
    matrix = normal(4, 4) + 4 * jnp.eye(4)
    weight, b = tensor(matrix), normal(4, seed=1)
    f = torch2jax(lambda v: weight @ v)
    close(jax.linear_transpose(f, b)(b)[0], tensor(matrix).mT @ tensor(b))
    close(jax.jit(lambda b: jax.linear_transpose(f, b)(b)[0])(b), tensor(matrix).mT @ tensor(b))
    solution = torch.linalg.solve(weight, tensor(b))
    close(jax.scipy.sparse.linalg.gmres(f, b)[0], solution, 1e-3)
    close(jax.scipy.sparse.linalg.bicgstab(f, b)[0], solution, 1e-3)
    spread = torch2jax(lambda v: torch.zeros(6, device=v.device).index_add(0, on(v, 5, 0, 0, 3), v))
    close(jax.linear_transpose(spread, b)(jnp.arange(6.0))[0], [5.0, 0.0, 0.0, 3.0])


def test_side_effects_happen_once_and_in_order(place):
    seen = []

    def note(x):
        seen.append(x.sum().item())
        return x + 1

    f = torch2jax(note, has_side_effect=True, output_shapes=S((2,), jnp.float32))
    program = jax.jit(lambda x: f(f(f(x))).sum() * 0)
    for _ in range(4):
        program(jnp.zeros(2)).block_until_ready()
    jax.effects_barrier()
    assert seen == [0.0, 2.0, 4.0] * 4


INDEXED = {
    "gather": lambda x, i: x.gather(0, i),
    "expanded gather": lambda x, i: x.gather(0, i[:, :1].expand(3, 4)),
    "take": torch.take,
    "take_along_dim": lambda x, i: x.take_along_dim(i, 0),
    "index_select": lambda x, i: x.index_select(0, i[0]),
    "index_add": lambda x, i: x.index_add(0, i[:, 0], x),
    "index_copy": lambda x, i: x.index_copy(0, torch.argsort(i[:3, 0]).to(i.dtype), x.sin()),
    "index_fill": lambda x, i: x.index_fill(0, i[:1, 0], 2.0),
    "scatter": lambda x, i: torch.zeros_like(x).scatter_add(0, i, x),
    "brackets": lambda x, i: x[i[:, 0], i[:, 1]],
    "cross_entropy": lambda x, i: F.cross_entropy(x, i[:, 0]),
    "nll_loss": lambda x, i: F.nll_loss(x, i[:, 1]),
    "one_hot": lambda x, i: F.one_hot(i, 3).float() * x.sum(),
    "embedding": lambda x, i: F.embedding(i, x),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", INDEXED)
def test_indices_of_32_bits(place, name, record_property):
    fn = INDEXED[name]
    x, i = normal(3, 4), jnp.array([[2, 0, 1, 2], [1, 1, 0, 0], [0, 2, 2, 1]], jnp.int32)
    leaf = tensor(x).requires_grad_()
    y = fn(leaf, tensor(i).long())
    weight = torch.linspace(0.5, 1.5, y.numel(), device=place.torch).view(y.shape)
    gradient = torch.autograd.grad((y * weight).sum(), leaf)[0]
    f, w = torch2jax(fn), jnp.asarray(weight.cpu().numpy())
    loss = lambda x, i: (f(x, i) * w).sum()
    found = Findings(record_property)
    with found.of("eager"):
        close(f(x, i), y)
    with found.of("jit"):
        close(jax.jit(f)(x, i), y)
    with found.of("grad"):
        close(jax.grad(loss)(x, i), gradient)
    with found.of("vmap(grad), jit"):
        close(jax.jit(jax.vmap(jax.grad(loss), (0, None)))(jnp.stack([x, x]), i), torch.stack([gradient, gradient]))
    found.tell()


# --- modules ---------------------------------------------------------------------------------------------------------


@pytest.mark.thinned(2)
@pytest.mark.parametrize("make", [lstm, gru, encoder, heads, batch_norm])
def test_gradients_of_parameters(place, make, record_property):
    torch.manual_seed(0)
    module = make().to(place.torch)
    size = 4 if isinstance(module, torch.nn.RNNBase) else 8
    x = normal(2, 5, size) if not isinstance(module, torch.nn.BatchNorm1d) else normal(5, 8)
    arguments = (x, x, x) if isinstance(module, torch.nn.MultiheadAttention) else (x,)
    is_training = module.training
    apply, variables = module2jax(module, train=is_training)
    first = lambda out: out[0] if isinstance(out, tuple) else out
    loss = lambda params, *xs: (first(apply({**variables, "params": params}, *xs)) ** 3).sum()
    out = first(module(*map(tensor, arguments)))
    names, leaves = zip(*module.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad((out**3).sum(), leaves), strict=True))
    found = Findings(record_property)
    with found.of("value"):
        close(first(apply(variables, *arguments)), out)
    for label, wrap in (("grad", lambda f: f), ("grad, jit", jax.jit)):
        for name, gradient in wrap(jax.grad(loss))(variables["params"], *arguments).items():
            with found.of(f"{label}: {name}"):
                close(gradient, expected[name], 1e-3)
    with found.of("vmap(grad)"):
        batch = [jnp.stack([a, a]) for a in arguments]
        gradients = jax.vmap(jax.grad(loss), (None, *[0] * len(batch)))(variables["params"], *batch)
        for name, gradient in gradients.items():
            close(gradient[1], expected[name], 1e-3, name)
    found.tell()


def test_warnings_of_writes_name_the_argument(place):
    f = torch2jax(through_data, output_shapes=S((4,), jnp.float32))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.block_until_ready(f(normal(4), normal(4)))
    assert any(issubclass(w.category, T2jWarning) and "args[0]" in str(w.message) for w in caught), list(
        map(str, caught)
    )
