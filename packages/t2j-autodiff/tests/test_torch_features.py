"""PyTorch as it comes, against native torch."""

from __future__ import annotations

import copy
import threading
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from common import agree, raises
from t2j_autodiff import ArgumentError, PerformanceWarning, load_variables, module2jax, torch2jax, tree_t2j
from torch import nn

RNG = np.random.default_rng(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.from_numpy(RNG.standard_normal(shape).astype(np.float32))


def native_grad(fn, *tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    return torch.autograd.grad(fn(*leaves), leaves, allow_unused=True, materialize_grads=True)


def close(mine, other, rtol=1e-4, atol=1e-5):
    agree(mine, other, rtol, atol)


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**2


class NewStyle(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**2


def no_grad_inside(x):
    with torch.no_grad():
        scale = x.abs().max()
    return (x.sin() * scale).sum()


def inference_mode_inside(x):
    with torch.inference_mode():
        scale = float(torch.ones(3).sum())
    return x.sin().sum() * scale


def autocast_inside(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (x @ x.mT).float().sum()


def forces(x):
    if not x.requires_grad:
        x = x.detach().requires_grad_()
    (force,) = torch.autograd.grad((x**4).sum(), x, create_graph=True)
    return force.sum()


def in_place_on_fresh(x):
    y = x.sin()
    y.mul_(x)
    y[0] += 1
    return y.sum()


FUNCTIONS = {
    "no_grad inside": no_grad_inside,
    "detach": lambda x: (x.detach() * x).sum(),
    "inference_mode inside": inference_mode_inside,
    "autocast inside": autocast_inside,
    "autograd.grad inside": forces,
    "torch.func.grad inside": lambda x: torch.func.grad(lambda y: (y**3).sum())(x).sum(),
    "torch.func.vmap inside": lambda x: torch.func.vmap(lambda r: r.sin().sum())(x).sum(),
    "checkpoint": lambda x: torch.utils.checkpoint.checkpoint(lambda y: y.sin().exp().sum(), x, use_reentrant=False),
    "old-style Function": lambda x: OldStyle.apply(x).sum(),
    "new-style Function": lambda x: NewStyle.apply(x).sum(),
    "in place on fresh tensors": in_place_on_fresh,
    "attention": lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]).square().sum(),
    "softmax and labels": lambda x: F.cross_entropy(x, torch.tensor([0, 2, 1, 3])),
    "not used": lambda x: x[0].sum(),
}


@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name, jitted):
    fn, x = FUNCTIONS[name], normal(4, 5)
    gradient = jax.grad(torch2jax(fn))
    close((jax.jit(gradient) if jitted else gradient)(jnp.asarray(x.numpy())), native_grad(fn, x)[0], rtol=1e-3)


@pytest.mark.parametrize("name", ["old-style Function", "new-style Function", "attention", "softmax and labels"])
def test_forward_mode_and_second_derivatives(name):
    fn, x, v = FUNCTIONS[name], normal(4, 5), normal(4, 5)
    f, (xj, vj) = torch2jax(fn), tree_t2j((x, v))

    def math(y):
        with nn.attention.sdpa_kernel([nn.attention.SDPBackend.MATH]):
            return fn(y)

    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(math(leaf), leaf, create_graph=True)
    (hv,) = torch.autograd.grad((g * v).sum(), leaf)
    close(jax.jvp(f, (xj,), (vj,))[1], (g * v).sum(), rtol=1e-3)
    close(jax.jvp(jax.grad(f), (xj,), (vj,))[1], hv, rtol=1e-3, atol=1e-4)
    close(jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), vj))(xj), hv, rtol=1e-3, atol=1e-4)


def model_and_loss(model, *inputs):
    def loss():
        y = model(*inputs)
        return (y[0] if isinstance(y, tuple) else y).square().mean()

    loss().backward()
    return {name: p.grad for name, p in model.named_parameters()}


class Tied(nn.Module):
    """An embedding whose weights are those of the output layer too."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, i):
        return self.out(self.embed(i))


MODELS = {
    "tied": (Tied, (torch.tensor([[0, 3, 6]]),)),
    "LSTM": (lambda: nn.LSTM(3, 4, batch_first=True), (normal(2, 5, 3),)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (normal(2, 5, 8),)),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.GELU()), (normal(2, 2, 6, 6),)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    model = make()
    apply, variables = module2jax(model)
    arrays = [jnp.asarray(t.numpy()) if t.is_floating_point() else t for t in inputs]

    @jax.jit
    def gradients(params):
        def loss(params):
            y = apply({"params": params, "buffers": variables["buffers"]}, *arrays)
            return jnp.mean((y[0] if isinstance(y, tuple) else y) ** 2)

        return jax.grad(loss)(params)

    close(dict(gradients(variables["params"])), model_and_loss(model, *inputs), atol=1e-6)


def test_batch_norm_returns_its_buffers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    x = normal(8, 3)
    apply, variables = module2jax(model, train=True, mutable=True)

    def loss(params):
        y, buffers = apply({"params": params, "buffers": variables["buffers"]}, jnp.asarray(x.numpy()))
        return jnp.mean(y**4), buffers

    (_, buffers), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    model.train()
    model(x).pow(4).mean().backward()
    close(gradients, {name: p.grad for name, p in model.named_parameters()}, rtol=1e-3, atol=1e-6)
    close(buffers, dict(model.named_buffers()))


def test_training_and_writing_back():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    x, y = normal(16, 3), normal(16, 1)
    reference = nn.Linear(3, 1)
    reference.load_state_dict(model.state_dict())
    apply, variables = module2jax(model)
    xj, yj = tree_t2j((x, y))

    @jax.jit
    def step(params):
        grads = jax.grad(lambda p: jnp.mean((apply({"params": p, "buffers": {}}, xj) - yj) ** 2))(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    params = variables["params"]
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(5):
        params = step(params)
        optimizer.zero_grad()
        F.mse_loss(reference(x), y).backward()
        optimizer.step()
    load_variables(model, {"params": params})
    close(dict(params), dict(reference.named_parameters()))
    for name, value in model.state_dict().items():
        assert torch.allclose(value, reference.state_dict()[name], atol=1e-6)


def test_no_grad_stops_forward_mode_too():
    # Regression: torch's forward mode goes through `no_grad`, and then JAX's two modes disagree.
    def fn(x):
        with torch.no_grad():
            s = x.sum()
        return s * x.prod()

    x = jnp.array([0.5, -1.0, 2.0])
    f, g = torch2jax(fn), lambda x: jax.lax.stop_gradient(x.sum()) * x.prod()
    np.testing.assert_allclose(jax.grad(f)(x), jax.grad(g)(x), rtol=1e-5)
    np.testing.assert_allclose(jax.jacfwd(f)(x), jax.jacfwd(g)(x), rtol=1e-5)
    np.testing.assert_allclose(jax.hessian(f)(x), jax.hessian(g)(x), rtol=1e-5, atol=1e-6)


def test_missing_buffers_are_named():
    apply, variables = module2jax(nn.BatchNorm1d(3).eval())
    with raises(ArgumentError, what="`variables['buffers']['running_mean']`", remedy="`{**variables"):
        apply({"params": variables["params"]}, jnp.ones((2, 3)))


class WithoutVmapRule(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**2


class WithOwnRules(WithoutVmapRule):
    """With a forward mode and a batching rule of its own."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, t):
        (x,) = ctx.saved_tensors
        return 3 * t * x**2

    @staticmethod
    def vmap(info, in_dims, x):
        return WithOwnRules.apply(x), in_dims[0]


class StoresItsArgument(torch.autograd.Function):
    """Without `save_for_backward`."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * g * ctx.x**2


CUBES = {cls.__name__: cls for cls in (OldStyle, NewStyle, WithoutVmapRule, WithOwnRules, StoresItsArgument)}


@pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")  # Hessians are batches of products
@pytest.mark.parametrize("name", CUBES)
def test_every_derivative_of_a_custom_function(name):
    f = torch2jax(lambda x: (CUBES[name].apply(x) * torch.arange(1.0, 4.0)).sum())

    def cubes(x):
        return (x**3 * jnp.arange(1.0, 4.0)).sum()

    x, v = jnp.array([0.5, -1.0, 2.0]), jnp.array([1.0, 2.0, -3.0])

    def hvp(f):
        return lambda x: jax.jvp(jax.grad(f), (x,), (v,))[1]

    def every(f):
        return lambda x: (
            jax.value_and_grad(f)(x),
            jax.jacfwd(f)(x),
            jax.hessian(f)(x),
            hvp(f)(x),
            jacrev(jacrev(f))(x),
        )

    jacrev = jax.jacrev
    results = jax.jit(every(f))(x), jax.jit(every(cubes))(x)
    for mine, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CUBES)
def test_batches_of_a_custom_function(name):
    f = torch2jax(lambda x: CUBES[name].apply(x).sum())
    xs = jnp.array([[0.5, -1.0], [2.0, 3.0], [0.0, 1.0]])
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(2):
            np.testing.assert_allclose(jax.vmap(f)(xs), (xs**3).sum(1), rtol=1e-6)
            np.testing.assert_allclose(jax.vmap(jax.grad(f))(xs), 3 * xs**2, rtol=1e-6)
            np.testing.assert_allclose(jax.grad(lambda x: jax.vmap(f)(x).sum())(xs), 3 * xs**2, rtol=1e-6)
    batched_by_torch = name in ("NewStyle", "WithOwnRules")
    assert [w.category for w in record] == ([] if batched_by_torch else [PerformanceWarning])
    assert ("one after another" in f.explain()) == (not batched_by_torch)


@pytest.mark.parametrize(("name", "how"), [("OldStyle", "transposed reverse"), ("WithOwnRules", "torch.func.jvp")])
def test_explain_tells_how_forward_mode_works(name, how):
    f = torch2jax(lambda x: CUBES[name].apply(x).sum())
    jax.jvp(f, (jnp.ones(2),), (jnp.ones(2),))
    assert f"forward mode: {how}" in f.explain()


INSIDE = {
    "func.grad": (lambda x: torch.func.grad(lambda y: (y**3).sum())(x).square().sum(), lambda x: (9 * x**4).sum()),
    "func.vmap": (lambda x: torch.func.vmap(lambda r: r**3)(x).sum(), lambda x: (x**3).sum()),
    "func.jvp": (lambda x: torch.func.jvp(lambda y: y**3, (x,), (x,))[1].sum(), lambda x: (3 * x**3).sum()),
    "func.hessian": (
        lambda x: torch.func.hessian(lambda y: (y**3).sum())(x).sum(),
        lambda x: 6 * x.sum(),
    ),
    "checkpoint": (
        lambda x: torch.utils.checkpoint.checkpoint(lambda y: y.sin().exp().sum(), x, use_reentrant=False),
        lambda x: jnp.exp(jnp.sin(x)).sum(),
    ),
    "detach": (lambda x: (x.detach() * x).sum(), lambda x: (jax.lax.stop_gradient(x) * x).sum()),
    "fork of the graph": (
        lambda x: (x.detach().requires_grad_() * 2).sum() * x.sum(),
        lambda x: jax.lax.stop_gradient(2 * x.sum()) * x.sum(),
    ),
}


TRANSFORMS = {
    "grad": jax.grad,
    "jacfwd": jax.jacfwd,
    "hessian": jax.hessian,
    "vmap of grad": lambda f: lambda x: jax.vmap(jax.grad(f))(jnp.stack([x, 2 * x])),
}

UNBATCHED = {  # torch.func refuses checkpoint's hooks, and `requires_grad_`
    *(("checkpoint", transform) for transform in ("hessian", "vmap of grad")),
    *(("fork of the graph", transform) for transform in ("jacfwd", "hessian", "vmap of grad")),
}
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12):  # no rule for a Function that checkpoint is made of
    UNBATCHED.add(("checkpoint", "jacfwd"))


@pytest.mark.thinned(2)
@pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", INSIDE)
def test_transforms_of_what_transforms_inside(name, transform):
    fn, same = INSIDE[name]
    x = jnp.array([0.5, -1.0, 2.0])
    f = torch2jax(fn)
    got = jax.jit(TRANSFORMS[transform](f))(x)
    np.testing.assert_allclose(got, TRANSFORMS[transform](same)(x), rtol=1e-4, atol=1e-5)
    assert ("one after another" in f.explain()) == ((name, transform) in UNBATCHED)


@pytest.mark.parametrize("transform", ["jacfwd", "hessian"])
def test_no_grad_inside_is_respected_by_forward_mode(transform):
    def fn(x):
        with torch.no_grad():
            scale = x.sum()
        return scale * x.prod()

    x = jnp.array([0.5, -1.0, 2.0])
    expected = TRANSFORMS[transform](lambda x: jax.lax.stop_gradient(x.sum()) * x.prod())(x)
    np.testing.assert_allclose(TRANSFORMS[transform](torch2jax(fn))(x), expected, rtol=1e-5)


def test_forces_and_their_derivatives():
    def forces(x):
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        return torch.autograd.grad((x**4).sum(), x, create_graph=True)[0]

    f = torch2jax(forces)
    x = jnp.array([0.5, -1.0, 2.0])
    np.testing.assert_allclose(f(x), 4 * x**3, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.jacrev(f))(x), jnp.diag(12 * x**2), rtol=1e-5)


def test_the_reentrant_checkpoint_gives_torchs_message():
    f = torch2jax(
        lambda x: torch.utils.checkpoint.checkpoint(lambda y: y.sin().exp().sum(), x, use_reentrant=True),
        output_shapes=jax.ShapeDtypeStruct((), jnp.float32),
    )
    with pytest.raises(RuntimeError, match=r"use_reentrant"):
        jax.grad(f)(jnp.arange(3.0))


COMPILED = {  # a program, and how often three runs of it compile: once with gradients and once without at most
    "value_and_grad": (lambda f, x: jax.value_and_grad(f)(x), 2),
    "jvp": (lambda f, x: jax.jvp(f, (x,), (x,)), 1),
    "grad of grad": (lambda f, x: jax.grad(lambda x: jax.grad(f)(x).sum())(x), 2),
}
BATCHES = {
    "value": lambda f, x: jax.vmap(f)(x),
    "grad": lambda f, x: jax.vmap(jax.grad(f))(x),
    "jvp": lambda f, x: jax.vmap(lambda x: jax.jvp(f, (x,), (x,)))(x),
}


@pytest.mark.parametrize("name", COMPILED)
def test_what_watches_a_function_does_not_compile_it_again(name):
    run, most = COMPILED[name]
    compiled = []

    def backend(graph, examples):
        compiled.append(graph)
        return graph.forward

    f = torch2jax(torch.compile(lambda x: (x.sin() * x).sum(), backend=backend))
    for _ in range(3):
        run(f, jnp.array([0.5, -1.0, 2.0]))
    assert 0 < len(compiled) <= most


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_compiles_no_more_than_the_function(name):
    from torch._dynamo.utils import counters  # what the compiler itself counts

    f = torch2jax(torch.compile(lambda x: (x.sin() * x).sum(), backend="eager"))
    x = jnp.arange(6.0).reshape(2, 3)
    got = BATCHES[name](f, x)
    counters.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the compiler's, of code that it cannot compile; ours, of a batch one by one
        again = BATCHES[name](f, x)
        BATCHES[name](f, x)
    assert counters["frames"]["total"] <= 1
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), again, got)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5), got, BATCHES[name](lambda x: (jnp.sin(x) * x).sum(), x)
    )


@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
def test_torch_compile_inside():
    @torch.compile(backend="aot_eager")
    def fn(x):
        return (x.sin() * x).sum()

    x = jnp.array([0.5, -1.0, 2.0])
    f = torch2jax(fn)
    expected = jnp.sin(x) + x * jnp.cos(x)
    np.testing.assert_allclose(jax.jit(jax.grad(f))(x), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(f)(2 * x), jnp.sin(2 * x) + 2 * x * jnp.cos(2 * x), rtol=1e-5)
    np.testing.assert_allclose(jax.jvp(f, (x,), (jnp.ones(3),))[1], expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(jax.grad(f))(jnp.stack([x, x])), np.stack([expected] * 2), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_autocast_in_every_mode():
    w = normal(4, 4)

    def fn(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = x @ w
        assert y.dtype == torch.bfloat16
        return y.float().square().sum()

    x, v = normal(2, 4), normal(2, 4)
    f = torch2jax(fn)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(fn(leaf), leaf)
    gradient = jax.grad(f)(jnp.asarray(x.numpy()))
    assert gradient.dtype == jnp.float32
    close(gradient, expected, rtol=1e-6)
    _, tangent = jax.jvp(f, tree_t2j((x,)), tree_t2j((v,)))
    np.testing.assert_allclose(tangent, (expected * v).sum(), rtol=3e-2)
    xs = torch.stack([x, 2 * x])
    batch = jax.vmap(jax.grad(f))(jnp.asarray(xs.numpy()))
    leaf = (2 * x).requires_grad_()
    close(batch[1], torch.autograd.grad(fn(leaf), leaf)[0], rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_every_mode(causal):
    torch.manual_seed(0)
    qkv, v = torch.randn(3, 1, 2, 3, 4), torch.randn(3, 1, 2, 3, 4)

    def fn(qkv):
        return (F.scaled_dot_product_attention(*qkv, is_causal=causal) ** 3).sum()

    def math(qkv):
        with nn.attention.sdpa_kernel([nn.attention.SDPBackend.MATH]):
            return fn(qkv)

    f = torch2jax(fn)
    x = jnp.asarray(qkv.numpy())
    gradient = jax.jit(jax.grad(f))(x)
    tangent = jax.jvp(f, (x,), (jnp.asarray(v.numpy()),))[1]
    hessian = jax.jit(jax.hessian(f))(x)
    again = jax.grad(f)(x)
    # JAX only dispatched those. PyTorch's forward mode and its choice of kernels are global, so the judge waits.
    jax.block_until_ready((gradient, tangent, hessian, again))
    close(gradient, torch.func.grad(fn)(qkv))
    close(tangent, torch.func.jvp(math, (qkv,), (v,))[1], rtol=1e-3)
    close(hessian, torch.func.hessian(math)(qkv), rtol=1e-3, atol=1e-4)
    close(again, torch.func.grad(fn)(qkv))  # the first order is as before
    assert not torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.math_sdp_enabled()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_with_integer_labels(reduction):
    logits, labels = normal(4, 5), torch.tensor([0, 2, -100, 4])

    def fn(x, i):
        return F.cross_entropy(x, i.long(), reduction=reduction).sum()

    f = torch2jax(fn)
    x, i = jnp.asarray(logits.numpy()), jnp.asarray(labels.numpy().astype(np.int32))
    leaf = logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(fn(leaf, labels), leaf)
    close(jax.jit(jax.grad(f))(x, i), expected)
    gx, gi = jax.grad(f, (0, 1), allow_int=True)(x, i)
    close(gx, expected)
    assert gi.dtype == jax.dtypes.float0 and gi.shape == (4,)
    per_example = jax.vmap(jax.grad(f))(x[:, None], i[:, None])
    assert not np.any(per_example[2]) or reduction == "mean"


def test_batch_norm_through_its_input_and_forward_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU())
    x, v = normal(4, 2, 5, 5), normal(4, 2, 5, 5)
    apply, variables = module2jax(model, train=True, mutable=True)

    def loss(variables, x):
        y, buffers = apply(variables, x)
        return jnp.mean(y**3), buffers

    xj = jnp.asarray(x.numpy())
    gradient, buffers = jax.jit(jax.grad(loss, 1, has_aux=True))(variables, xj)
    _, tangent, _ = jax.jvp(lambda x: loss(variables, x), (xj,), (jnp.asarray(v.numpy()),), has_aux=True)
    second = {"params": variables["params"], "buffers": buffers}
    _, buffers_2 = jax.jit(loss)(second, xj)
    model.train()
    leaf = x.clone().requires_grad_()
    model(leaf).pow(3).mean().backward()
    close(gradient, leaf.grad, rtol=1e-3, atol=1e-6)
    close(tangent, (leaf.grad * v).sum(), rtol=1e-3, atol=1e-5)
    close(buffers, dict(model.named_buffers()))
    model(x)
    close(buffers_2, dict(model.named_buffers()))
    assert int(buffers_2["1.num_batches_tracked"]) == 2


def test_lstm_in_every_mode():
    torch.manual_seed(0)
    model = nn.LSTM(2, 3, num_layers=2, bidirectional=True)
    x, v = normal(4, 1, 2), normal(4, 1, 2)
    apply, variables = module2jax(model)

    def f(x):
        y, (h, c) = apply(variables, x)
        return jnp.sum(y**2) + jnp.sum(h * c)

    def fn(x):
        y, (h, c) = model(x)
        return y.square().sum() + (h * c).sum()

    xj, vj = jnp.asarray(x.numpy()), jnp.asarray(v.numpy())
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(fn(leaf), leaf, create_graph=True)
    (hv,) = torch.autograd.grad((g * v).sum(), leaf)
    close(jax.jit(jax.grad(f))(xj), g)
    close(jax.jvp(f, (xj,), (vj,))[1], (g * v).sum())
    close(jax.jvp(jax.grad(f), (xj,), (vj,))[1], hv, rtol=1e-3)
    xs = torch.stack([x, 3 * x])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PerformanceWarning)  # torch.func.vmap may or may not know an LSTM
        batch = jax.vmap(jax.grad(f))(jnp.asarray(xs.numpy()))
    leaf = (3 * x).requires_grad_()
    close(batch[1], torch.autograd.grad(fn(leaf), leaf)[0])


def test_tied_parameters_get_the_sum():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    model, x = Tied(), normal(2, 3)
    apply, variables = module2jax(model)
    assert list(variables["params"]) == ["a.weight"]
    gradients = jax.grad(lambda p: apply({"params": p, "buffers": {}}, jnp.asarray(x.numpy())).sum())(
        variables["params"]
    )
    model(x).sum().backward()
    close(gradients["a.weight"], model.a.weight.grad)


def test_control_flow_on_data():
    def fn(x):
        if x.sum().item() > 0:
            return (x**2).sum()
        n = int(x.abs().max().item())
        for _ in range(n):
            x = x * 2
        return x.sum()

    def same(x):
        n = jnp.trunc(jax.lax.stop_gradient(jnp.abs(x).max()))
        return jnp.where(x.sum() > 0, (x**2).sum(), (x * 2.0**n).sum())

    f = torch2jax(fn, output_shapes=jax.ShapeDtypeStruct((), jnp.float32))
    value_and_grad = jax.jit(jax.value_and_grad(f))
    for x in (jnp.array([1.0, 2.0]), jnp.array([-3.5, 1.0]), jnp.array([-1.0, 0.5]), jnp.array([3.0, 4.0])):
        value, gradient = value_and_grad(x)
        assert float(value) == pytest.approx(float(same(x)))
        np.testing.assert_allclose(gradient, jax.grad(same)(x), rtol=1e-6)
        np.testing.assert_allclose(jax.jvp(f, (x,), (x,))[1], jnp.vdot(gradient, x), rtol=1e-6)
    xs = jnp.array([[1.0, 2.0], [-3.5, 1.0], [-1.0, 0.5]])
    with pytest.warns(PerformanceWarning, match="one after another"):
        batch = jax.vmap(jax.grad(f))(xs)
    np.testing.assert_allclose(batch, np.stack([jax.grad(same)(x) for x in xs]), rtol=1e-6)


def test_python_state_that_changes_after_the_trace():
    state = {"scale": 2.0}
    f = torch2jax(lambda x: (x.sin() * state["scale"]).sum())
    x = jnp.arange(6000.0)  # not quick
    value_and_grad, push = jax.jit(jax.value_and_grad(f)), jax.jit(lambda x: jax.jvp(f, (x,), (x,)))
    hessian_vector = jax.jit(lambda x: jax.jvp(jax.grad(f), (x,), (x,))[1])
    for scale in (2.0, 3.0, -1.0):
        state["scale"] = scale
        value, gradient = value_and_grad(x)
        np.testing.assert_allclose(value, scale * np.sin(x).sum(), rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(gradient, scale * np.cos(x), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(push(x)[1], scale * (np.cos(x) * x).sum(), rtol=1e-3)
        np.testing.assert_allclose(hessian_vector(x), -scale * np.sin(x) * x, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("n", [8, 3000])  # run again, and kept
def test_threads(n):
    f = torch2jax(lambda x: (x.tanh() * x.exp()).sum())

    def g(x):
        return (jnp.tanh(x) * jnp.exp(x)).sum()

    calls = [
        (jax.grad(f), jax.grad(g)),
        (jax.jit(jax.value_and_grad(f)), jax.value_and_grad(g)),
        (lambda x: jax.jvp(f, (x,), (x,))[1], lambda x: jax.jvp(g, (x,), (x,))[1]),
        (jax.jit(lambda x: jax.jvp(jax.grad(f), (x,), (x,))[1]), lambda x: jax.jvp(jax.grad(g), (x,), (x,))[1]),
    ]
    xs = [jnp.linspace(-1, 1, n) * (k + 1) / 8 for k in range(8)]
    expected = [[other(x) for _, other in calls] for x in xs]
    results: list = [None] * 8
    barrier = threading.Barrier(8)

    def work(k):
        try:
            barrier.wait()
            results[k] = [[mine(xs[k]) for mine, _ in calls] for _ in range(5)]
        except BaseException as error:
            results[k] = error

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(8):
        assert not isinstance(results[k], BaseException), results[k]
        for once in results[k]:
            for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(expected[k]), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def bert(transformers):
    config = transformers.BertConfig(
        vocab_size=23,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForMaskedLM(config)


def llama(transformers):
    config = transformers.LlamaConfig(
        vocab_size=23,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        max_position_embeddings=12,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2(transformers):
    config = transformers.GPT2Config(
        vocab_size=23, n_embd=8, n_layer=1, n_head=2, n_positions=12, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.filterwarnings("ignore")  # of transformers and of torch
@pytest.mark.parametrize("make", [bert, llama, gpt2])
def test_language_models(make):
    """Every mode of a small model with random weights; in double precision, but a Llama normalises in single."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = make(transformers).double().eval()
    ids = torch.tensor([[1, 5, 7, 2, 22], [3, 3, 8, 11, 9]])
    options = {} if make is bert else {"use_cache": False}
    rtol, h, rtol_of_difference = (1e-4, 1e-2, 3e-2) if make is llama else (1e-9, 3e-5, 1e-5)
    rng = np.random.default_rng(0)

    def native(ids):
        model.zero_grad()
        logits = model(input_ids=ids, **options).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
        loss.backward()
        return loss, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}

    with jax.enable_x64(True):
        apply, variables = module2jax(model)

        def loss(params, ids):
            logits = apply({"params": params, "buffers": variables["buffers"]}, input_ids=ids, **options)["logits"]
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1))

        def dot(a, b):
            return sum(jnp.vdot(a[name], b[name]) for name in a)

        params, ids_j = variables["params"], jnp.asarray(ids.numpy())
        direction = {name: jnp.asarray(rng.standard_normal(p.shape) / 10) for name, p in params.items()}
        value, gradients = jax.jit(jax.value_and_grad(loss))(params, ids_j)
        expected, expected_gradients = native(ids)
        np.testing.assert_allclose(value, expected.detach(), rtol=1e-9)
        for name, g in gradients.items():
            np.testing.assert_allclose(g, expected_gradients[name], rtol=rtol, atol=rtol)

        push = jax.jit(lambda p: jax.jvp(lambda p: loss(p, ids_j), (p,), (direction,)))
        (above, slope_above), (below, slope_below) = (
            push({name: p + t * direction[name] for name, p in params.items()}) for t in (h, -h)
        )
        _, slope = push(params)
        np.testing.assert_allclose(slope, (above - below) / (2 * h), rtol=rtol_of_difference)
        np.testing.assert_allclose(slope, dot(gradients, direction), rtol=rtol)

        product = jax.jit(lambda p: jax.jvp(lambda p: jax.grad(loss)(p, ids_j), (p,), (direction,))[1])
        curvature = (slope_above - slope_below) / (2 * h)
        np.testing.assert_allclose(dot(product(params), direction), curvature, rtol=rtol_of_difference)

        per_example = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, ids_j[:, None])
        for i in range(2):
            _, expected_gradients = native(ids[i : i + 1])
            for name, g in per_example.items():
                np.testing.assert_allclose(g[i], expected_gradients[name], rtol=rtol, atol=rtol)


@pytest.mark.filterwarnings("ignore")  # of transformers and of torch
@pytest.mark.parametrize("make", [bert, llama, gpt2])
def test_hidden_states_of_language_models(make):
    """They are collected by hooks that a model installs at its first call: there must be as many at every call."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = make(transformers).eval()
    ids = torch.tensor([[1, 5, 7, 2, 22], [3, 3, 8, 11, 9]])
    options = {"output_hidden_states": True} | ({} if make is bert else {"use_cache": False})
    apply, variables = module2jax(model)
    ids_j, buffers = jnp.asarray(ids.numpy().astype(np.int32)), variables["buffers"]

    def loss(params):
        states = apply({"params": params, "buffers": buffers}, input_ids=ids_j, **options)["hidden_states"]
        return sum((state**2).mean() for state in states), states

    expected = model(input_ids=ids, **options).hidden_states
    sum((state**2).mean() for state in expected).backward()
    for gradient in (jax.grad(loss, has_aux=True), jax.jit(jax.grad(loss, has_aux=True))):
        gradients, states = gradient(variables["params"])
        assert len(states) == len(expected)
        for ours, theirs in zip(states, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-4, atol=1e-5)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                np.testing.assert_allclose(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5)


class Collecting(torch.nn.Module):
    """Keeps what it computes in a list and a dict, and fills a cache."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((3,), 0.5))
        self.outputs, self.cache = [], {}

    def forward(self, x):
        self.cache.setdefault("scale", self.scale.exp())
        for _ in range(8):
            x = torch.sin(x * self.cache["scale"])
        self.outputs.append(x)
        return sum(self.outputs)


def test_derivatives_of_a_module_that_collects():
    def expected(scale, x):
        for _ in range(8):
            x = jnp.sin(x * jnp.exp(scale))
        return x

    apply, _ = module2jax(Collecting())
    f = lambda scale, x: apply({"params": {"scale": scale}, "buffers": {}}, x)
    scale, xs = jnp.full(3, 0.3), jnp.linspace(0.1, 1, 6).reshape(2, 3)
    for transform in (
        lambda f: jax.grad(lambda s: f(s, xs[0]).sum()),
        lambda f: jax.hessian(lambda s: f(s, xs[0]).sum()),
        lambda f: lambda s: jax.jvp(lambda s: f(s, xs[0]), (s,), (s,))[1],
        lambda f: lambda s: jax.vmap(jax.grad(lambda s, x: f(s, x).sum()), (None, 0))(s, xs),
    ):
        for call in (transform(f), jax.jit(transform(f))):
            np.testing.assert_allclose(call(scale), transform(expected)(scale), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("first", ["torch", "t2j"])
def test_forward_mode_beside_a_thread_that_uses_that_of_torch(first):
    """Regression: torch has one level for all threads, and who left it first set the tangents of the other to zero."""
    inside, left = {"torch": threading.Event(), "t2j": threading.Event()}, threading.Event()
    answers = {}

    def function(name):
        def fn(x):
            if torch._C._functorch.peek_interpreter_stack() is not None and not inside[name].is_set():
                inside[name].set()
                if name == first:  # until the other came in, or is seen to wait
                    inside["torch" if name == "t2j" else "t2j"].wait(1)
                else:  # until the other left, or is seen to wait
                    left.wait(1)
            return x.sin().sum()

        return fn

    x = np.linspace(0, 1, 5, dtype=np.float32)
    f = torch2jax(function("t2j"), output_shapes=jax.ShapeDtypeStruct((), jnp.float32))
    push = jax.jit(lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]).lower(x).compile()
    inside["t2j"].clear()

    def work(name):
        if name == "t2j":
            answers[name] = float(push(x))
        else:
            t = torch.from_numpy(x)
            answers[name] = float(torch.func.jvp(function(name), (t,), (torch.ones(5),))[1])
        if name == first:
            left.set()

    threads = [threading.Thread(target=work, args=(name,)) for name in (first, "torch" if first == "t2j" else "t2j")]
    threads[0].start()
    assert inside[first].wait(30)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert answers == pytest.approx(dict.fromkeys(("torch", "t2j"), float(np.cos(x).sum())))


@pytest.mark.parametrize("residuals", ["auto", "recompute", "graph"])
@pytest.mark.parametrize("module", [nn.Embedding(10, 3, sparse=True), nn.EmbeddingBag(10, 3, sparse=True, mode="sum")])
def test_sparse_gradients_arrive_dense(module, residuals):
    apply, variables = module2jax(module, residuals=residuals)
    indices = np.array([[0, 1], [2, 1]])
    gradient = jax.jit(jax.grad(lambda v: (apply(v, jnp.asarray(indices)) ** 2).sum()))(variables)
    module.zero_grad()
    module(torch.from_numpy(indices)).square().sum().backward()
    close(gradient["params"]["weight"], module.weight.grad.to_dense())


class ScaledByModule(torch.autograd.Function):
    """Its backward looks the parameter up in the module."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        return x * module.weight

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * ctx.module.weight, None


class Recomputing(nn.Module):
    """A module whose backward runs its code again."""

    def __init__(self, block=None):
        super().__init__()
        self.first, self.second = nn.Linear(40, 40), nn.Linear(40, 40)
        self.weight = nn.Parameter(torch.ones(40) / 2, requires_grad=False)

    def forward(self, x):
        block = lambda h: torch.tanh(self.second(torch.tanh(h)))
        h = torch.utils.checkpoint.checkpoint(block, self.first(x), use_reentrant=False)
        return ScaledByModule.apply(torch.utils.checkpoint.checkpoint(self.second, h, use_reentrant=False), self)


@pytest.mark.filterwarnings("ignore::t2j_core.PerformanceWarning")
@pytest.mark.parametrize("residuals", ["auto", "recompute", "graph"])
def test_a_backward_that_runs_code_of_its_module(residuals):
    # Regression: it found the module without its parameters.
    module = Recomputing()
    apply, variables = module2jax(module, residuals=residuals)
    x = normal(400, 40)
    loss = lambda params, x: (apply({**variables, "params": params}, x) ** 2).sum()
    for scale in (1, 2):
        params = jax.tree.map(lambda p, scale=scale: scale * p, variables["params"])
        gradient = jax.jit(jax.grad(loss, (0, 1)))(params, jnp.asarray(x.numpy()))
        names = ["first.weight", "second.weight", "second.bias"]
        native = {n: torch.from_numpy(np.array(p)) for n, p in params.items()}
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(native[name])
        tensors = [dict(module.named_parameters())[n] for n in names]
        leaf = x.clone().requires_grad_()
        expected = torch.autograd.grad(module(leaf).square().sum(), [*tensors, leaf])
        close([*(gradient[0][n] for n in names), gradient[1]], list(expected), rtol=1e-3, atol=1e-3)
        load_variables(module, variables)


def test_derivatives_of_all_kinds_where_the_backward_runs_code_of_its_module():
    module = Recomputing()
    apply, variables = module2jax(module)
    plain = lambda x: apply(variables, x)
    x, t = (jnp.asarray(normal(3, 40).numpy()) for _ in range(2))
    w = {n: np.asarray(p).T for n, p in variables["params"].items()}

    def expected(x):
        with jax.numpy_rank_promotion("allow"):
            h = jnp.tanh(jnp.tanh(x @ w["first.weight"] + w["first.bias"]) @ w["second.weight"] + w["second.bias"])
            return (h @ w["second.weight"] + w["second.bias"]) * w["weight"]

    loss, reference = (lambda x, f=f: (f(x) ** 2).sum() for f in (plain, expected))
    mine = jax.jit(jax.vmap(jax.grad(loss)))(x)
    np.testing.assert_allclose(mine, jax.vmap(jax.grad(reference))(x), rtol=1e-3, atol=1e-4)
    mine = jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), t))(x)
    np.testing.assert_allclose(mine, jax.grad(lambda x: jnp.vdot(jax.grad(reference)(x), t))(x), rtol=1e-3, atol=1e-4)
    mine = jax.jvp(plain, (x,), (t,))[1]
    np.testing.assert_allclose(mine, jax.jvp(expected, (x,), (t,))[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_running_statistics_that_are_handed_on_inside_a_derivative(mode):
    # Regression: the statistics of the second step depended on the parameters, which torch's batch norm refuses.
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    apply, variables = module2jax(module, train=True, mutable=True)
    batches = normal(3, 8, 3)

    def loss(params):
        def step(buffers, batch):
            output, buffers = apply({"params": params, "buffers": buffers}, batch)
            return buffers, output

        buffers, outputs = jax.lax.scan(step, variables["buffers"], jnp.asarray(batches.numpy()))
        return (outputs**2).sum(), buffers

    native = copy.deepcopy(module).train()
    sum(native(batch).square().sum() for batch in batches).backward()
    if mode == "reverse":
        gradient, buffers = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        close([gradient[n] for n, _ in native.named_parameters()], [p.grad for p in native.parameters()], atol=1e-3)
    else:
        tangents = jax.tree.map(jnp.ones_like, variables["params"])
        _, slope, buffers = jax.jvp(loss, (variables["params"],), (tangents,), has_aux=True)
        close(slope, sum(p.grad.sum() for p in native.parameters()), rtol=1e-3)
    close(buffers["1.running_var"], native[1].running_var)


class Reassigning(nn.Module):
    """Asks whether its weight is a parameter, and replaces it for a while."""

    def __init__(self, do):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 1.0, 2.0]))
        self.do = do

    def forward(self, x):
        return self.do(self, x * self.scale).sin().sum()


def asking(module, x):
    return x * sum(p * isinstance(p, nn.Parameter) for _, p in module.named_parameters())


def replacing(module, x):
    scale, module.scale = module.scale, nn.Parameter(torch.ones(3))
    y = x * module.scale
    module.scale = scale
    return y * module.scale


def registering(module, x):
    module.register_parameter("further", module.scale)
    return x * module.further


@pytest.mark.parametrize("do", [asking, replacing, registering])
def test_derivatives_of_a_module_that_treats_its_parameters_as_parameters(do):
    apply, variables = module2jax(Reassigning(do))
    x = jnp.arange(3.0)
    scale = variables["params"]["scale"]

    def ours(scale):
        return apply({"params": {"scale": scale}, "buffers": {}}, x)

    def theirs(scale):
        return jnp.sin(x * scale**2).sum()

    scales = jnp.stack([scale, 2 * scale])
    for transformed in (
        lambda f: jax.grad(f)(scale),
        lambda f: jax.jit(jax.grad(f))(scale),
        lambda f: jax.jvp(f, (scale,), (x,)),
        lambda f: jax.vmap(f)(scales),
        lambda f: jax.vmap(jax.grad(f))(scales),
        lambda f: jax.hessian(f)(scale),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *map(transformed, (ours, theirs))
        )
