"""`vmap_method` and what goes with it, against the function in jnp."""

from __future__ import annotations

import copy
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import agree, warns
from t2j_autodiff import PerformanceWarning, module2jax, torch2jax

X = jnp.arange(12.0).reshape(4, 3) / 7
W = jnp.arange(6.0).reshape(3, 2) - 2
METHODS = ("auto", "vmap", "sequential", "expand_dims", "broadcast_all")


def in_torch(x, w):
    return torch.sin(x[..., None, :] @ w)[..., 0, :]


def in_jnp(x, w):
    return jnp.sin(x @ w)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method):
    f = torch2jax(in_torch, vmap_method=method)
    np.testing.assert_allclose(jax.vmap(f, (0, None))(X, W), in_jnp(X, W), rtol=1e-5)
    got = jax.vmap(f, (1, 0), 1)(X.T, jnp.stack([W] * 4))
    np.testing.assert_allclose(got, in_jnp(X, W).T, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_per_example(method):
    def gradients(f):
        return jax.vmap(jax.grad(lambda x, w: f(x, w).sum(), (0, 1)), (0, None))(X, W)

    for mine, other in zip(gradients(torch2jax(in_torch, vmap_method=method)), gradients(in_jnp), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_chunks(size):
    f = torch2jax(in_torch, vmap_chunk_size=size)
    np.testing.assert_allclose(jax.vmap(f, (0, None))(X, W), in_jnp(X, W), rtol=1e-5)


def test_it_is_one_call_of_torch():
    calls = []

    def fn(x):
        if not x.is_meta:
            calls.append(1)
        return x.sin()

    jax.vmap(torch2jax(fn))(jnp.ones((50, 3)))
    assert len(calls) == 1


def test_a_result_that_is_the_same_for_all():
    f = torch2jax(lambda x: (x * 2, torch.ones(2)))
    doubled, ones = jax.vmap(f)(X)
    np.testing.assert_array_equal(doubled, X * 2)
    np.testing.assert_array_equal(ones, np.ones((4, 2)))


def test_what_cannot_be_batched_runs_in_turn_with_one_warning():
    f = torch2jax(lambda x: x * x.sum().item(), output_shapes=jax.ShapeDtypeStruct((3,), jnp.float32))
    batched = jax.jit(jax.vmap(f))
    with warns(PerformanceWarning, times=1, anywhere=("cannot batch", "4 examples", "one after another")):
        for _ in range(3):
            np.testing.assert_allclose(batched(X), X * X.sum(1, keepdims=True), rtol=1e-6)
    assert "one after another" in f.explain()


def test_in_turn_every_example_has_memory_of_its_own():
    # Regression: an operation that reads memory from its beginning saw the first example.
    f = torch2jax(lambda x: x.as_strided((2,), (1,), 0), vmap_method="sequential")
    np.testing.assert_array_equal(jax.vmap(f)(X), X[:, :2])


def test_an_exception_of_the_function_is_not_hidden():
    def fn(x):
        if not x.is_meta:
            raise LookupError("mine")
        return x

    with pytest.raises(LookupError, match="mine"):
        jax.vmap(torch2jax(fn))(X)


@pytest.mark.parametrize("method", ["expand_dims", "broadcast_all"])
def test_functions_that_take_no_leading_axis(method):
    f = torch2jax(lambda x: x.sum(), vmap_method=method)
    with pytest.raises(Exception, match="returned a wrong output|dimension|IndexError"):
        jax.vmap(f)(X)


def test_nested():
    f = torch2jax(in_torch)
    cube = jnp.stack([X, 2 * X])
    got = jax.vmap(jax.vmap(f, (0, None)), (0, None))(cube, W)
    np.testing.assert_allclose(got, in_jnp(cube, W), rtol=1e-5)
    got = jax.vmap(jax.vmap(f, (None, 0)), (0, None))(X, jnp.stack([W, 2 * W]))
    expected = jax.vmap(jax.vmap(in_jnp, (None, 0)), (0, None))(X, jnp.stack([W, 2 * W]))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_module_with_a_fixed_batch_axis_of_its_own():
    layer = torch.nn.Conv1d(2, 3, 2)
    f = torch2jax(lambda x: layer(x[None])[0])
    x = np.random.default_rng(0).standard_normal((5, 2, 7)).astype(np.float32)
    np.testing.assert_allclose(jax.vmap(f)(jnp.asarray(x)), layer(torch.from_numpy(x)).detach(), rtol=1e-4, atol=1e-5)


def agree_on(f, g, *args, rtol=1e-4, atol=1e-5):
    agree(f(*args), g(*args), rtol, atol)


BATCHES = {
    "vmap of grad": lambda f: jax.vmap(jax.grad(lambda x, w: f(x, w).sum(), (0, 1)), (0, None)),
    "grad of vmap": lambda f: jax.grad(lambda x, w: (jax.vmap(f, (0, None))(x, w) ** 2).sum(), (0, 1)),
    "vmap of jvp": lambda f: jax.vmap(lambda x, w: jax.jvp(f, (x, w), (x, w)), (0, None)),
    "jvp of vmap": lambda f: lambda x, w: jax.jvp(jax.vmap(f, (0, None)), (x, w), (x, w)),
    "vmap of hessian": lambda f: jax.vmap(jax.hessian(lambda x, w: f(x, w).sum()), (0, None)),
    "jacrev of vmap": lambda f: jax.jacrev(jax.vmap(f, (0, None)), (0, 1)),
    "vmap of vmap of grad": lambda f: (
        lambda x, w: jax.vmap(jax.vmap(jax.grad(lambda x, w: f(x, w).sum()), (0, None)), (None, 0))(
            x, jnp.stack([w, 2 * w])
        )
    ),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("method", METHODS)
def test_derivatives_of_batches(method, name):
    f = torch2jax(in_torch, vmap_method=method)
    agree_on(jax.jit(BATCHES[name](f)), BATCHES[name](in_jnp), X, W)


@pytest.mark.parametrize(
    ("method", "shapes"), [("expand_dims", ((4, 3), (1, 3, 2))), ("broadcast_all", ((4, 3), (4, 3, 2)))]
)
def test_what_the_function_sees(method, shapes):
    seen = []

    def fn(x, w):
        seen.append((x.shape, w.shape))
        return in_torch(x, w)

    f = torch2jax(fn, vmap_method=method, output_shapes=jax.ShapeDtypeStruct((2,), jnp.float32))
    agree_on(jax.vmap(f, (0, None)), in_jnp, X, W)
    assert seen == [shapes]


@pytest.mark.parametrize("method", METHODS)
def test_axes(method):
    f, g = (torch2jax(in_torch, vmap_method=method)), in_jnp
    ws = jnp.stack([W, W + 1, W * 2, -W], 2)
    for axes, out, args in (
        ((None, 2), 0, (X[0], ws)),
        ((0, 2), 1, (X, ws)),
        ((1, -1), -1, (X.T, ws)),
    ):
        agree_on(jax.vmap(f, axes, out), jax.vmap(g, axes, out), *args)
    agree_on(jax.vmap(f, (None, None), axis_size=5), jax.vmap(g, (None, None), axis_size=5), X[0], W)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [0, 1])
def test_sizes_0_and_1(method, size):
    f = torch2jax(in_torch, vmap_method=method)
    result = jax.vmap(f, (0, None))(X[:size], W)
    assert result.shape == (size, 2)
    np.testing.assert_allclose(result, in_jnp(X[:size], W), rtol=1e-5)
    gradients = jax.vmap(jax.grad(lambda x, w: f(x, w).sum(), (0, 1)), (0, None))(X[:size], W)
    assert [g.shape for g in gradients] == [(size, 3), (size, 3, 2)]
    of_sum = jax.grad(lambda w: jax.vmap(f, (0, None))(X[:size], w).sum())(W)
    np.testing.assert_allclose(of_sum, jax.grad(lambda w: in_jnp(X[:size], w).sum())(W), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 4, 7])
def test_chunks_with_derivatives_and_constants(chunk):
    f = torch2jax(in_torch, vmap_chunk_size=chunk)
    for transform in (BATCHES["vmap of grad"], BATCHES["grad of vmap"], BATCHES["jvp of vmap"]):
        agree_on(transform(f), transform(in_jnp), X, W)


def test_chunks_bound_what_runs_at_once():
    largest = []

    class Sees(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and torch._C._functorch.is_batchedtensor(result):
                largest.append(torch._C._functorch.get_unwrapped(result).shape[0])
            return result

    def fn(x):
        with Sees():
            return x.sin()

    f = torch2jax(fn, vmap_chunk_size=3, output_shapes=jax.ShapeDtypeStruct((2,), jnp.float32))
    np.testing.assert_allclose(jax.vmap(f)(jnp.ones((10, 2))), np.sin(np.ones((10, 2))), rtol=1e-6)
    assert set(largest) == {3, 1}


@pytest.mark.parametrize("method", ["auto", "vmap", "sequential"])
def test_outputs_of_all_kinds(method):
    def fn(x, i, *, scale):
        return {
            "sum": x.sum(),
            "index": x.argmax(),
            "same": torch.arange(2),
            "flag": x > 0,
            "rows": (x[i], None, x * scale),
        }

    def same(x, i, *, scale):
        rows = (x[i], None, x * scale)
        return {"sum": x.sum(), "index": x.argmax(), "same": jnp.arange(2), "flag": x > 0, "rows": rows}

    f = torch2jax(fn, vmap_method=method)
    x, i, s = X - 0.5, jnp.array([[0, 1], [2, 2], [1, 0], [0, 0]]), jnp.arange(4.0)
    batch = lambda f: jax.vmap(lambda x, i, s: f(x, i, scale=s))
    agree_on(batch(f), batch(same), x, i, s)
    got = jax.eval_shape(batch(f), x, i, s)
    assert got["flag"].dtype == bool
    assert got["same"].shape == (4, 2)
    loss = lambda f: lambda x, i, s: sum(jnp.sum(v) for v in (f(x, i, scale=s)["sum"], *f(x, i, scale=s)["rows"][::2]))
    agree_on(jax.vmap(jax.grad(loss(f))), jax.vmap(jax.grad(loss(same))), x, i, s)


def test_a_batch_dimension_of_integers_only():
    f = torch2jax(lambda x, i: x.index_select(-1, i.reshape(1).long()).sum())
    got = jax.vmap(jax.grad(f), (None, 0))(X[0], jnp.arange(3))
    np.testing.assert_array_equal(got, np.eye(3))


FALLBACKS = {
    "item": lambda x: x * x.sum().item(),
    "numpy": lambda x: x * torch.from_numpy(np.asarray(x.detach().sum().numpy())),
    "in place on a constant": lambda x: torch.zeros(3).copy_(x) * x.sum().detach(),
    "masked_select": lambda x: x * x.detach().masked_select(x.detach() > -9).sum(),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")  # torch's word on `.item()`
@pytest.mark.parametrize("name", FALLBACKS)
def test_fallbacks(name):
    def same(x):
        return x * jax.lax.stop_gradient(x.sum())

    f = torch2jax(FALLBACKS[name], output_shapes=jax.ShapeDtypeStruct((3,), jnp.float32))
    square = lambda f: lambda x: (f(x) ** 2).sum()
    calls = (
        lambda f: jax.vmap(f),
        lambda f: jax.jit(jax.vmap(jax.grad(square(f)))),
        lambda f: jax.grad(lambda x: jax.vmap(square(f))(x).sum()),
        lambda f: lambda x: jax.vmap(jax.vmap(f))(x[None]),
        lambda f: lambda x: jax.vmap(lambda a: jax.vmap(jax.grad(square(f)), (0,))(a * x))(jnp.ones(2)),
    )
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for call in calls:
            agree_on(call(f), call(same), X)
    own = [w for w in record if issubclass(w.category, PerformanceWarning)]
    assert len(own) == 1
    assert "the 4 examples run one after another" in str(own[0].message)


def test_sequential_does_not_warn():
    f = torch2jax(FALLBACKS["item"], output_shapes=jax.ShapeDtypeStruct((3,), jnp.float32), vmap_method="sequential")
    agree_on(jax.vmap(f), lambda x: x * x.sum(1, keepdims=True), X)
    agree_on(jax.jit(jax.vmap(jax.vmap(f))), lambda x: x * x.sum(2, keepdims=True), X[None])


def test_sequential_is_one_call_of_jax_and_n_of_torch():
    calls = []
    f = torch2jax(
        lambda x: calls.append(x.shape) or x.sin().sum(),
        output_shapes=jax.ShapeDtypeStruct((), jnp.float32),
        vmap_method="sequential",
    )
    text = str(jax.make_jaxpr(jax.vmap(f))(X))
    assert text.count("torch_call[") == 1
    assert not calls
    jax.block_until_ready(jax.vmap(f)(X))
    assert calls == [(3,)] * 4


def test_a_failure_of_one_example_is_the_functions_own():
    def fn(x):
        if x.sum().item() > 2:
            raise LookupError(f"too large: {x.sum().item():.0f}")
        return x

    f = torch2jax(fn, output_shapes=jax.ShapeDtypeStruct((3,), jnp.float32))
    with pytest.raises(LookupError, match="too large"):
        jax.vmap(f)(X)
    with pytest.warns(PerformanceWarning):
        np.testing.assert_array_equal(jax.vmap(f)(X[:2]), X[:2])


def test_an_exception_does_not_turn_batching_off():
    state = {"fails": True}

    def fn(x):
        if state["fails"]:
            raise LookupError("for now")
        return x.sin()

    f = torch2jax(fn, output_shapes=jax.ShapeDtypeStruct((3,), jnp.float32))
    with pytest.raises(LookupError, match="for now"):
        jax.vmap(f)(X)
    state["fails"] = False
    np.testing.assert_allclose(jax.vmap(f)(X), np.sin(X), rtol=1e-6)
    assert "one after another" not in f.explain()


def test_in_place_on_an_argument_of_a_batch():
    f = torch2jax(lambda x, y: x.mul_(2).add_(y), mutable_argnums=0)
    before = np.asarray(X).copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PerformanceWarning)  # torch refuses where only `y` is batched
        np.testing.assert_allclose(jax.vmap(f)(X, X), 3 * X, rtol=1e-6)
        np.testing.assert_allclose(jax.vmap(f, (None, 0))(X[0], X), 2 * X[0][None] + X, rtol=1e-6)
        np.testing.assert_allclose(jax.vmap(jax.grad(lambda x, y: (f(x, y) ** 2).sum()))(X, X), 12 * X, rtol=1e-6)
    np.testing.assert_array_equal(X, before)


NESTED = {  # in_axes of the inner and of the outer batch
    "product": ((None, 0), (0, None)),
    "product the other way": ((0, None), (None, 0)),
    "one of them twice": ((0, None), (0, None)),
    "one of them once": ((0, None), (0, 0)),
}


@pytest.mark.parametrize("size", [0, 2, 4])
@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("method", ["expand_dims", "broadcast_all"])
def test_nested_leading_axes(method, name, size):
    def pairs(x, y):
        return x * 100 + y

    inner, outer = NESTED[name]

    def operand(k):
        shape = [n for n, axes in ((2, outer), (size, inner)) if axes[k] == 0]
        return jnp.arange(3.0 * np.prod(shape)).reshape(*map(int, shape), 3)

    x, y = operand(0), operand(1)
    batch = lambda f: jax.vmap(jax.vmap(f, inner), outer)
    agree_on(batch(torch2jax(pairs, vmap_method=method)), batch(pairs), x, 7 * y)


def test_scans_and_conditions_of_batches():
    f = torch2jax(in_torch)

    def program(f):
        def one(x, n):
            y = jax.lax.cond(n > 1, lambda x: f(x, W), lambda x: 2 * f(x, W), x)
            return jax.lax.fori_loop(0, n, lambda _, y: f(jnp.concatenate([y, y[:1]]), W), y)

        return jax.jit(jax.vmap(one))

    agree_on(program(f), program(in_jnp), X, jnp.arange(4))


class Counted(torch.nn.Module):
    """Counts its copies."""

    copies = 0

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, x):
        return torch.tanh(self.linear(x))

    def __deepcopy__(self, memo):
        Counted.copies += 1
        other = memo[id(self)] = Counted.__new__(Counted)
        vars(other).update(copy.deepcopy(vars(self), memo))
        return other


def test_examples_in_turn_share_one_copy_of_a_module():
    apply, variables = module2jax(Counted(), vmap_method="sequential", residuals="recompute")
    params = variables["params"]
    loss = lambda params, f: jax.vmap(lambda x: f(params, x))(X).sum()
    mine = jax.grad(loss)(params, lambda params, x: apply({"params": params, "buffers": {}}, x))
    reference = jax.grad(loss)(params, lambda p, x: jnp.tanh(p["linear.weight"] @ x + p["linear.bias"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), mine, reference)
    assert Counted.copies == 2  # one that is called, and one that is never called, from which others are made
