"""`outputs="copy"`, `"out"` and `"auto"` differ in speed and in nothing else."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core import ArgumentError, OutputError, Size, torch2jax
from torch.utils._python_dispatch import TorchDispatchMode

F = torch.nn.functional
SIDE = 600  # 600 x 600 floats: 1.4 MB, above the size from which "auto" avoids copies
CALLS = 3


@functools.cache
def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs(call: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [normal(10 * call + i, shape).copy() for i, shape in enumerate(shapes)]


def check(function, f, arrays):
    """The call against torch itself, bit by bit."""
    got = f(*map(jnp.asarray, arrays))
    expected = function(*map(torch.from_numpy, arrays))
    got, expected = (x if isinstance(x, (tuple, list)) else (x,) for x in (got, expected))
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        b = b.detach().resolve_conj().resolve_neg()
        assert a.shape == tuple(b.shape)
        np.testing.assert_array_equal(np.asarray(a), b.numpy().astype(a.dtype))


weight = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0), requires_grad=True)
table = torch.arange(SIDE * SIDE, dtype=torch.float32).reshape(SIDE, SIDE)

OPS = {
    "sin": lambda a, b: torch.sin(a),
    "add": lambda a, b: a + b,
    "sub_alpha": lambda a, b: torch.sub(a, b, alpha=2),
    "mm": lambda a, b: a @ b,
    "addmm": lambda a, b: torch.addmm(a, a, b, beta=2, alpha=0.5),
    "bmm": lambda a, b: torch.bmm(a[None], b[None]),
    "linear": lambda a, b: F.linear(a, b),
    "linear_of_parameter": lambda a, b: F.linear(a, weight),
    "cat": lambda a, b: torch.cat([a, b], 1),
    "stack": lambda a, b: torch.stack([a, b]),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "clamp": lambda a, b: a.clamp(-1, 1),
    "relu": lambda a, b: F.relu(a),
    "gelu": lambda a, b: F.gelu(a),
    "softmax": lambda a, b: F.softmax(a, -1),
    "layer_norm": lambda a, b: F.layer_norm(a, (SIDE,)),
    "cumsum": lambda a, b: a.cumsum(0),
    "sort": lambda a, b: a.sort(0).values,
    "topk": lambda a, b: a.topk(500, 0).values,
    "gather": lambda a, b: torch.gather(a, 1, b.argsort(1)),
    "transpose": lambda a, b: (a + b).T,
    "transpose of a product": lambda a, b: (a @ b).T,
    "transpose of a batch": lambda a, b: torch.bmm(a.view(-1, 10, SIDE), b.expand(SIDE // 10, SIDE, SIDE)).mT,
    "permute": lambda a, b: (a * b).view(20, 30, SIDE).permute(2, 0, 1),
    "transposed and read": lambda a, b: (lambda y: (y.T, y.view(-1)))(a * b),
    "transposed_copy": lambda a, b: (a + b).T.contiguous(),
    "slice": lambda a, b: (a * b)[:, 10:],
    "step": lambda a, b: (a * b)[::2],
    "expand": lambda a, b: a[:1].expand(SIDE, SIDE),
    "flip": lambda a, b: a.flip(0),
    "roll": lambda a, b: a.roll(3, 0),
    "pad": lambda a, b: F.pad(a, (1, 1)),
    "conv": lambda a, b: F.conv2d(a[None, None], b[None, None, :3, :3]),
    "pool": lambda a, b: F.avg_pool2d(a[None], 3, 1),
    "attention": lambda a, b: F.scaled_dot_product_attention(a[None, None], b[None, None], a[None, None]),
    "complex": lambda a, b: torch.complex(a, b),
    "conj": lambda a, b: torch.complex(a, b).conj(),
    "imag of conj": lambda a, b: torch.complex(a, b).conj().imag,
    "real": lambda a, b: torch.complex(a, b).real,
    "fft": lambda a, b: torch.fft.fft2(a),
    "half": lambda a, b: a.half(),
    "double": lambda a, b: a.double() * b,
    "compare": lambda a, b: (a > b, a)[0],
    "argsort": lambda a, b: a.argsort(0),
    "in place on the result": lambda a, b: (a + b).mul_(2),
    "out of empty": lambda a, b: torch.mul(a, b, out=torch.empty(SIDE, SIDE)),
    "filled": lambda a, b: torch.empty_like(a).copy_(b),
    "filled by slices": lambda a, b: _filled(a, b),
    "view of the result": lambda a, b: (a + b).view(-1),
    "constant": lambda a, b: torch.full((SIDE, SIDE), 3.0),
    "closed over": lambda a, b: table,
    "closed over twice": lambda a, b: (table, table),
    "the input": lambda a, b: a,
    "the inputs swapped": lambda a, b: (b, a),
    "twice": lambda a, b: (lambda y: (y, y))(a + b),
    "and a view": lambda a, b: (lambda y: (y, y.T))(a + b),
    "and its input": lambda a, b: (lambda y: (y.sin(), y))(a + b),
    "chain": lambda a, b: (lambda y: (lambda z: (z, y, z + y))(y.sin()))(a + b),
    "swapped": lambda a, b: (lambda y, z: (z, y))(a + b, a - b),
    "large and small": lambda a, b: (a + b, a.sum(), b[:2]),
    "under no_grad": lambda a, b: _no_grad(a, b),
    "autograd": lambda a, b: _gradient(a, b),
    "sparse on the way": lambda a, b: (a.to_sparse() * 2).to_dense(),
    "vmap": lambda a, b: torch.func.vmap(lambda x, y: x.sin() + y)(a, b),
    "chunk": lambda a, b: (a + b).chunk(1)[0],
    "einsum": lambda a, b: torch.einsum("ij,kj->ik", a, b),
    "random": lambda a, b: (lambda g: torch.rand(SIDE, SIDE, generator=g) + a)(torch.Generator().manual_seed(1)),
}


def _filled(a, b):
    y = torch.empty_like(a)
    y[::2] = a[::2]
    y[1::2] = b[1::2]
    return y


def _no_grad(a, b):
    with torch.no_grad():
        return F.linear(a, weight)


def _gradient(a, b):
    leaf = a.clone().requires_grad_()
    return torch.autograd.grad((leaf.sin() * b).sum(), leaf)[0]


@pytest.mark.thinned(6)
@pytest.mark.parametrize("outputs", ["copy", "auto"])
@pytest.mark.parametrize("name", OPS)
def test_every_call_gives_what_torch_gives(name, outputs):
    f = torch2jax(OPS[name], outputs=outputs)
    for call in range(CALLS):
        check(OPS[name], f, inputs(call, (SIDE, SIDE), (SIDE, SIDE)))


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (0, 4), (511, 513), (1 << 18,), (1 << 18, 1), (2, 3, 1 << 17)], ids=str
)
@pytest.mark.parametrize("outputs", ["copy", "out", "auto"])
def test_every_size(shape, outputs):
    function = lambda t, out=None: torch.exp(t, out=out)
    f = torch2jax(function, outputs=outputs) if outputs == "out" else torch2jax(torch.exp, outputs=outputs)
    for call in range(CALLS):
        check(torch.exp, f, inputs(call, shape))
        check(torch.exp, jax.jit(f), inputs(call, shape))


# --- the copy is really avoided -----------------------------------------------------------------------------------

swaps = pytest.mark.skipif(
    not hasattr(TorchDispatchMode, "ignore_compile_internals"),
    reason="torch before 2.10 cannot compile under a dispatch mode, so results are copied once that is loaded",
)


def pointers(outputs: str, n: int, calls: int = 4) -> list[bool]:
    """For each call: whether torch's result lay where JAX's result is."""
    seen = []

    def function(t, **kwargs):
        y = torch.sin(t, **kwargs)
        if not y.is_meta:
            seen.append(y.data_ptr())
        return y

    compiled = jax.jit(torch2jax(function, outputs=outputs)).lower(jnp.zeros(n)).compile()
    seen.clear()
    return [compiled(jnp.full(n, i / 2)).unsafe_buffer_pointer() == seen[-1] for i in range(calls)]


@swaps
def test_auto_writes_large_results_in_place_from_the_second_call():
    assert pointers("auto", 1 << 19)[1:] == [True] * 3


def test_auto_copies_small_results():
    assert pointers("auto", 1 << 10) == [False] * 4


def test_copy_copies():
    assert pointers("copy", 1 << 19) == [False] * 4


def test_out_is_handed_the_memory_of_the_result():
    assert pointers("out", 1 << 10) == [True] * 4
    assert pointers("out", 1 << 19) == [True] * 4


# --- auto, where calls differ --------------------------------------------------------------------------------------


def run_branches(branches, flags, *, shapes=((SIDE, SIDE), (SIDE, SIDE)), n_outputs=1):
    """A function whose control flow depends on data, against torch."""

    def function(flag, *tensors):
        return branches[int(flag)](*tensors)

    size = Size(SIDE, SIDE)
    f = torch2jax(function, output_shapes=size if n_outputs == 1 else (size,) * n_outputs)
    for call, flag in enumerate(flags):
        arrays = inputs(call, *shapes)
        got = f(jnp.asarray(flag, jnp.int32), *map(jnp.asarray, arrays))
        expected = branches[flag](*map(torch.from_numpy, arrays))
        got, expected = (x if isinstance(x, (tuple, list)) else (x,) for x in (got, expected))
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(a), b.detach().numpy())


FLAGS = [0, 0, 1, 0, 1, 1, 0]


@pytest.mark.parametrize(
    "branches",
    [
        (lambda a, b: a + b, lambda a, b: a * b),
        (lambda a, b: a + b, lambda a, b: (a + b).sin()),
        (lambda a, b: (a + b).sin(), lambda a, b: a + b),
        (lambda a, b: a + b, lambda a, b: a),
        (lambda a, b: a + b, lambda a, b: (b + a).T),
        (lambda a, b: a.sin(), lambda a, b: b.sin() + a.sin()),
        (lambda a, b: a + b, lambda a, b: (a + b)[:1].expand(SIDE, SIDE)),
        (lambda a, b: a + b, lambda a, b: (a + b).mul_(b).sub_(a)),
        (lambda a, b: a + b, lambda a, b: table),
        (lambda a, b: a * b, lambda a, b: _with_another_product(a, b)),
    ],
    ids="other operation,longer,shorter,input,transposed,same operation twice,view,in place,constant,two".split(","),
)
def test_control_flow_that_changes_between_calls(branches):
    run_branches(branches, FLAGS)
    run_branches(branches, [1 - flag for flag in FLAGS])


def _with_another_product(a, b):
    first = a * b
    second = first * b
    return second - first


def test_the_same_operation_at_the_same_place_in_another_dtype():
    # Regression: `wide * wide` was computed into the float32 buffer of the result.
    wide = torch.full((SIDE, SIDE), 1 + 1e-9, dtype=torch.float64)
    run_branches((lambda a, b: a * a, lambda a, b: ((wide * wide - 1) * 1e9).float()), FLAGS)


def test_the_same_operation_at_the_same_place_in_a_narrower_dtype():
    half = torch.full((SIDE, SIDE), 1.001, dtype=torch.float16)
    run_branches((lambda a, b: a * a, lambda a, b: (half * half).float()), FLAGS)


def test_the_same_operation_at_the_same_place_in_another_shape():
    # Regression: torch tried to resize XLA's buffer.
    tall = torch.full((3, SIDE, SIDE), 2.0)
    run_branches((lambda a, b: a * a, lambda a, b: (tall * tall).sum(0)), FLAGS)
    small = torch.full((SIDE,), 2.0)
    run_branches((lambda a, b: a * a, lambda a, b: (small * small).expand(SIDE, SIDE)), FLAGS)
    flat = torch.full((SIDE * SIDE,), 2.0)
    run_branches((lambda a, b: a * a, lambda a, b: (flat * flat).view(SIDE, SIDE)), FLAGS)


def test_views_that_change_between_calls():
    run_branches((lambda a, b: (a * a).T, lambda a, b: (a * a).view(-1).view(SIDE, SIDE)), FLAGS)


@swaps
def test_a_view_of_a_result_is_written_in_place():
    product = torch2jax(lambda a, b: (a @ b).view(-1, 2))
    a, b = map(jnp.asarray, inputs(0, (SIDE, SIDE), (SIDE, SIDE)))
    jax.block_until_ready([product(a, b) for _ in range(2)])
    assert "output: written in place by aten.mm" in product.explain()
    np.testing.assert_array_equal(product(a, b), np.asarray(torch2jax(torch.mm)(a, b)).reshape(-1, 2))


def test_a_result_in_another_layout():
    across = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)).T
    run_branches((lambda a, b: a * a, lambda a, b: (across * across).sin()), FLAGS)
    run_branches((lambda a, b: a * a, lambda a, b: (across * across).flatten()[: SIDE * SIDE].view(SIDE, SIDE)), FLAGS)


@swaps
def test_a_result_in_another_layout_is_copied():
    f = torch2jax(lambda a: (a * a).T)
    for call in range(CALLS):
        check(f.fn, f, inputs(call, (SIDE, SIDE)))
    assert "output: copied (its layout in memory is not the one that aten.mul" in f.explain()


@pytest.mark.parametrize(
    "branches",
    [
        (lambda a, b: (a + b, a - b), lambda a, b: (lambda y, z: (z, y))(a + b, a - b)),
        (lambda a, b: (a + b, a - b), lambda a, b: (lambda y: (y, y))(a + b)),
        (lambda a, b: (a + b, a - b), lambda a, b: (a, b)),
        (lambda a, b: (a + b, a - b), lambda a, b: (lambda y: (y.T, y))(a + b)),
        (lambda a, b: (a + b, a - b), lambda a, b: (lambda y: (y.flip(0), y.mul_(2)))(a + b)),
        (lambda a, b: (lambda y: (y, y))(a + b), lambda a, b: (a + b, a - b)),
        (lambda a, b: (lambda y: (y, y.sin()))(a + b), lambda a, b: (lambda y: (y.sin(), y))(a + b)),
    ],
    ids=["swapped", "one twice", "inputs", "transposed", "in place", "apart", "order"],
)
def test_several_outputs_that_change_places(branches):
    run_branches(branches, FLAGS, n_outputs=2)


def test_a_function_that_keeps_its_result():
    # Regression: with "auto" the result lay in XLA's buffer, so keeping it was an error, from the second call on.
    for outputs in ("copy", "auto"):
        kept = []

        def function(t):
            y = torch.sin(t)
            kept.append(y)
            return y

        f = torch2jax(function, outputs=outputs)
        xs = [jnp.asarray(inputs(call, (SIDE, SIDE))[0]) for call in range(CALLS)]
        results = [np.array(f(x)) for x in xs]
        kept = [y for y in kept if not y.is_meta][-CALLS:]
        for x, result, y in zip(xs, results, kept, strict=True):
            np.testing.assert_array_equal(result, torch.sin(torch.from_numpy(np.array(x))).numpy())
            np.testing.assert_array_equal(y.numpy(), result)


def test_a_function_that_keeps_its_previous_result_as_state():
    class Smooth:
        last = None

        def __call__(self, t):
            self.last = t.clone() if self.last is None or self.last.is_meta else self.last * 0.5 + t
            return self.last

    f, expected = torch2jax(Smooth(), output_shapes=Size(SIDE, SIDE)), Smooth()
    for call in range(4):
        check(expected, f, inputs(call, (SIDE, SIDE)))


def test_results_of_earlier_calls_stay_as_they_are():
    f = torch2jax(lambda t: t + 1)
    xs = [jnp.full((SIDE, SIDE), float(i)) for i in range(5)]
    results = [f(x) for x in xs]
    for i, result in enumerate(results):
        assert float(result.min()) == float(result.max()) == i + 1


def test_results_of_tensors_that_a_loop_replaces():
    f = torch2jax(lambda t: torch.sin(t) + t)

    @jax.jit
    def loop(x):
        return jax.lax.fori_loop(0, 5, lambda _, c: f(c), x)

    (x,) = inputs(0, (SIDE, SIDE))
    expected = torch.from_numpy(x)
    for _ in range(5):
        expected = torch.sin(expected) + expected
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(loop(jnp.asarray(x))), expected.numpy())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's own compiler
def test_what_torch_has_compiled_is_not_compiled_again():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    inner = torch.compile(lambda t: torch.sin(t) * 2, backend=backend)
    inner(torch.ones(8))
    f = jax.jit(torch2jax(inner, output_shapes=jax.ShapeDtypeStruct((8,), jnp.float32)))
    for _ in range(3):
        f(jnp.ones(8)).block_until_ready()
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's own compiler
def test_a_compiled_function_inside():
    # The "eager" backend traces and needs no C++ compiler.
    inner = torch.compile(lambda t: torch.sin(t) * 2, backend="eager")
    for outputs in ("copy", "auto"):
        f = torch2jax(lambda t: inner(t) + 1, outputs=outputs)
        g = torch2jax(inner, outputs=outputs)
        for call in range(CALLS):
            (x,) = inputs(call, (SIDE, SIDE))
            expected = (torch.sin(torch.from_numpy(x)) * 2).numpy()
            np.testing.assert_array_equal(np.asarray(f(jnp.asarray(x))), expected + np.float32(1))
            np.testing.assert_array_equal(np.asarray(g(jnp.asarray(x))), expected)


# --- out -----------------------------------------------------------------------------------------------------------


def test_out_has_the_tree_of_the_outputs():
    def function(t, out=None):
        if out is None:
            return {"sin": torch.sin(t), "rest": (torch.cos(t), t.sum((0, 1)))}
        torch.sin(t, out=out["sin"])
        torch.cos(t, out=out["rest"][0])
        torch.sum(t, (0, 1), out=out["rest"][1])
        return out

    (x,) = inputs(0, (5, 7))
    out = jax.jit(torch2jax(function, outputs="out"))(jnp.asarray(x))
    np.testing.assert_array_equal(np.asarray(out["sin"]), torch.sin(torch.from_numpy(x)).numpy())
    np.testing.assert_array_equal(np.asarray(out["rest"][0]), torch.cos(torch.from_numpy(x)).numpy())
    np.testing.assert_array_equal(np.asarray(out["rest"][1]), torch.from_numpy(x).sum((0, 1)).numpy())


def test_out_may_be_ignored():
    (x,) = inputs(0, (5, 7))
    f = torch2jax(lambda t, out=None: torch.sin(t), outputs="out")
    np.testing.assert_array_equal(np.asarray(f(jnp.asarray(x))), torch.sin(torch.from_numpy(x)).numpy())


def test_out_in_swapped_places():
    def function(t, out=None):
        if out is None:
            return torch.sin(t), torch.cos(t)
        torch.sin(t, out=out[1])
        torch.cos(t, out=out[0])
        return out[1], out[0]

    (x,) = inputs(0, (50, 7))
    s, c = torch2jax(function, outputs="out")(jnp.asarray(x))
    np.testing.assert_array_equal(np.asarray(s), torch.sin(torch.from_numpy(x)).numpy())
    np.testing.assert_array_equal(np.asarray(c), torch.cos(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("name", ["int32", "bool", "bfloat16", "complex64", "float8_e4m3fn"])
def test_out_in_every_kind_of_dtype(name):
    def function(t, out=None):
        return t.clone() if out is None else out.copy_(t)

    x = jnp.asarray((np.arange(12).reshape(3, 4) % 3).astype(jnp.bool_ if name == "bool" else getattr(jnp, name)))
    y = torch2jax(function, outputs="out")(x)
    assert y.dtype == x.dtype
    assert np.asarray(y).tobytes() == np.asarray(x).tobytes()


def test_out_where_torch_computes_in_a_wider_dtype():
    def function(t, out=None):
        result = t.long() + 1
        return result if out is None else out.copy_(result)

    x = jnp.arange(5, dtype=jnp.int32)
    assert np.asarray(torch2jax(function, outputs="out")(x)).tolist() == [1, 2, 3, 4, 5]


def test_out_for_a_function_without_it_is_that_functions_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'out'"):
        torch2jax(lambda t: t + 1, outputs="out")(jnp.ones(3))


def test_the_three_ways_have_the_same_errors():
    for outputs in ("copy", "auto"):
        with pytest.raises(OutputError, match=r"f32\[4\](.|\n)*f32\[3\]"):
            torch2jax(torch.sin, outputs=outputs, output_shapes=Size(4))(jnp.ones(3))
    with pytest.raises(ArgumentError):
        torch2jax(torch.sin, outputs="")
