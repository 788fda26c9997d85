"""Derivatives over trees, dtypes, constants and shapes of every kind, judged by the same function in `jnp`."""

from __future__ import annotations

import collections
import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import agree_with_types, warns
from t2j_autodiff import ArgumentError, PerformanceWarning, torch2jax

MODES = ["auto", "recompute", "graph"]
X = jnp.asarray([[0.5, -1.2, 0.3], [0.9, 1.4, -0.8]], jnp.float32)
Y = jnp.asarray([[-0.7, 0.3, 1.1], [1.6, -0.1, 0.6]], jnp.float32)
N = jnp.asarray([[1, 2, 3], [4, 5, 6]], jnp.int32)
B = jnp.asarray([[True, False, True], [False, False, True]])
float0 = jax.dtypes.float0


def busy(x):
    """`x`, by way of too many operations to be run again rather than recorded."""
    for _ in range(13):
        x = x * 1.0
    return x


def agree(got, expected, tolerance=1e-5):
    agree_with_types(got, expected, tolerance)


def total(out):
    """A number that depends on every inexact leaf."""
    leaves = [leaf for leaf in jax.tree.leaves(out) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum(((k + 1) * leaf.astype(jnp.float32) ** 2).sum() for k, leaf in enumerate(leaves))


def graded(f, *args, argnums=0, **options):
    """The loss of `f` and its gradient."""
    return jax.value_and_grad(lambda *a: total(f(*a)), argnums=argnums, **options)(*args)


def same(f, g, *programs, tolerance=1e-5):
    """Compare what programs make of `f` and `g`, all in one compiled program."""
    got, expected = (jax.jit(lambda: [p(h) for p in programs])() for h in (f, g))
    agree(got, expected, tolerance)
    return got


# --- integers and booleans ----------------------------------------------------------------------------------------


def torch_mixed(x, n, b):
    return busy(x) * n * b + torch.sin(x)


def jnp_mixed(x, n, b):
    return x * n.astype(x.dtype) * b.astype(x.dtype) + jnp.sin(x)


@pytest.mark.parametrize("residuals", MODES)
def test_integer_and_bool_arguments(residuals):
    f = torch2jax(torch_mixed, residuals=residuals)
    tangents = (Y, np.zeros(N.shape, float0), np.zeros(B.shape, float0))
    got = same(
        f,
        jnp_mixed,
        lambda h: graded(h, X, N, B, argnums=(0, 1, 2), allow_int=True),
        lambda h: graded(h, X, N, B),
        lambda h: jax.vjp(h, X, N, B)[1](Y),
        lambda h: jax.jvp(h, (X, N, B), tangents),
        lambda h: jax.vmap(h, in_axes=(0, 1, None))(X, N.T, B[0]),
        lambda h: jax.vmap(lambda *a: jax.vjp(h, *a)[1](a[0])[0])(X, N, B),
    )
    (_, (_, of_integers, of_bools)), *_ = got
    assert of_integers.dtype == of_bools.dtype == float0


def test_a_gradient_of_integers_is_refused_as_by_jax():
    f = torch2jax(torch_mixed)
    for g in (f, jnp_mixed):
        with pytest.raises(TypeError, match="requires real- or complex-valued inputs"):
            jax.grad(lambda n: total(g(X, n, B)))(N)


@pytest.mark.parametrize("residuals", MODES)
def test_integer_outputs_have_no_gradient(residuals):
    f = torch2jax(lambda x: (busy(x) ** 3, {"best": x.argmax(-1), "positive": x > 0}), residuals=residuals)
    g = lambda x: (x**3, {"best": x.argmax(-1).astype(jnp.int32), "positive": x > 0})
    cotangents = (Y, {"best": np.zeros(2, float0), "positive": np.zeros((2, 3), float0)})
    same(
        f,
        g,
        lambda h: jax.value_and_grad(lambda x: (total(h(x)[0]), h(x)[1]), has_aux=True)(X),
        lambda h: jax.value_and_grad(lambda x: ((out := h(x))[0].sum(), out[1]), has_aux=True)(X),
        lambda h: jax.vjp(h, X)[1](cotangents),
        lambda h: jax.jvp(h, (X,), (Y,)),
        lambda h: jax.vmap(jax.jacrev(lambda x: h(x)[0]))(X),
        lambda h: jax.vmap(h)(X),
    )


@pytest.mark.parametrize("residuals", MODES)
@pytest.mark.filterwarnings("error")
def test_no_output_can_be_differentiated(residuals):
    f = torch2jax(lambda x: (x.argmax(-1), x > 0), residuals=residuals)
    g = lambda x: (x.argmax(-1).astype(jnp.int32), x > 0)
    loss = lambda h: lambda x: (x**2).sum() + h(x)[0].sum().astype(jnp.float32)
    same(f, g, lambda h: jax.value_and_grad(loss(h))(X), lambda h: jax.jvp(h, (X,), (Y,)))


@pytest.mark.parametrize(
    "residuals",
    [
        "auto",
        "recompute",
        "graph",
    ],
)
@pytest.mark.parametrize("constant", ["detach", "full"])
def test_an_output_that_torch_does_not_differentiate_has_a_gradient_of_zero(residuals, constant):
    fn, g = {
        "detach": (lambda x: busy(x).detach(), jax.lax.stop_gradient),
        "full": (lambda x: torch.full(x.shape, 2.0), lambda x: jnp.full(x.shape, 2.0)),
    }[constant]
    f = torch2jax(fn, residuals=residuals)
    same(f, g, lambda h: graded(h, X), lambda h: jax.jvp(h, (X,), (Y,)), lambda h: jax.vmap(jax.jacrev(h))(X))


# --- dtypes -------------------------------------------------------------------------------------------------------

TOLERANCE = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}


@pytest.mark.parametrize("residuals", MODES)
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_the_gradient_has_the_dtype_of_the_input(name, residuals):
    x, y = X.astype(name), Y.astype(name)
    f = torch2jax(lambda x, y: torch.sin(busy(x)) * y, residuals=residuals)
    g = lambda x, y: jnp.sin(x) * y
    got = same(
        f,
        g,
        lambda h: graded(h, x, y, argnums=(0, 1)),
        lambda h: jax.jvp(h, (x, y), (y, x)),
        tolerance=TOLERANCE[name],
    )
    assert [leaf.dtype for leaf in got[0][1]] == [x.dtype, y.dtype]


@pytest.mark.parametrize("residuals", MODES)
def test_mixed_dtypes(residuals):
    x, h, b = X, Y.astype(jnp.float16), (X + Y).astype(jnp.bfloat16)
    f = torch2jax(lambda x, h, b: (busy(x) * h.float() + b, (h * h).to(torch.bfloat16)), residuals=residuals)
    g = lambda x, h, b: (x * h.astype(x.dtype) + b.astype(x.dtype), (h * h).astype(jnp.bfloat16))
    got = same(
        f,
        g,
        lambda k: graded(k, x, h, b, argnums=(0, 1, 2)),
        lambda k: jax.vmap(jax.grad(lambda *a: total(k(*a)), argnums=(1, 2)))(x, h, b),
        tolerance=5e-2,
    )
    assert [leaf.dtype for leaf in got[0][1]] == [x.dtype, h.dtype, b.dtype]


@pytest.mark.parametrize("residuals", MODES)
def test_64_bit_inside_while_x64_is_off(residuals):
    def wide(x):
        count = torch.arange(3)  # int64
        y = torch.sin(busy(x).double()) * count
        assert y.dtype == torch.float64
        return y, count

    g = lambda x: (jnp.sin(x) * jnp.arange(3.0)[None], jnp.arange(3))
    f = torch2jax(wide, residuals=residuals)
    (value, aux), (expected, expected_aux) = f(X), g(X)
    agree((value, aux), (expected, expected_aux))
    assert (value.dtype, aux.dtype) == (jnp.float32, jnp.int32)
    same(
        f,
        g,
        lambda h: graded(h, X),
        lambda h: jax.jvp(lambda x: h(x)[0], (X,), (Y,)),
        lambda h: jax.hessian(lambda x: total(h(x)[0]))(X),
        lambda h: jax.vmap(jax.grad(lambda x: total(h(x[None])[0])))(X),
        tolerance=1e-4,
    )


@pytest.mark.parametrize("residuals", MODES)
def test_an_operand_that_is_64_bit_inside(residuals):
    def wide(x):
        assert x.dtype == torch.float64
        return torch.sin(busy(x))

    f = torch2jax(wide, torch.zeros(2, 3, dtype=torch.float64), residuals=residuals)
    agree(jax.jvp(f, (X,), (Y,)), jax.jvp(jnp.sin, (X,), (Y,)))
    assert "forward mode: torch.func.jvp" in f.explain()  # nothing had to take its place
    same(
        f,
        jnp.sin,
        lambda h: graded(h, X),
        lambda h: jax.jvp(h, (X,), (Y,)),
        lambda h: jax.hessian(lambda x: total(h(x)))(X),
        tolerance=1e-4,
    )


def test_float64_with_x64():
    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(X, np.float64))
        f = torch2jax(lambda x: torch.sin(busy(x)) * x)
        got, expected = (graded(h, x) for h in (f, lambda x: jnp.sin(x) * x))
        assert got[1].dtype == jnp.float64
        np.testing.assert_allclose(np.asarray(got[1]), np.asarray(expected[1]), rtol=1e-13)


# --- trees --------------------------------------------------------------------------------------------------------

Pair = collections.namedtuple("Pair", ["first", "second"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    first: object
    second: object


@dataclasses.dataclass
class Unregistered:
    first: object
    second: object


CONTAINERS = {
    "dict": lambda a, b: {"b": b, "a": a},
    "list": lambda a, b: [a, b],
    "namedtuple": Pair,
    "dataclass": Registered,
    "nested": lambda a, b: {"x": [a, (b, None)], "y": Pair(b, {"z": a})},
}


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_trees_in_and_out(container):
    def over(sin):
        def run(tree, none):
            assert none is None
            a, b = (tree.first, tree.second) if isinstance(tree, (Pair, Registered)) else jax.tree.leaves(tree)[:2]
            return container(sin(a) * b, a + b * b)

        return run

    tree = container(X, Y)
    f, g = torch2jax(over(lambda x: torch.sin(busy(x)))), over(jnp.sin)
    same(
        f,
        g,
        lambda h: graded(h, tree, None),
        lambda h: jax.vmap(lambda t: h(t, None))(tree),
        lambda h: jax.jvp(lambda t: h(t, None), (tree,), (tree,)),
    )


def test_an_unregistered_dataclass_comes_back_as_a_dict():
    f = torch2jax(lambda x: Unregistered(torch.sin(busy(x)), x * x))
    g = lambda x: {"first": jnp.sin(x), "second": x * x}
    agree(f(X), g(X))
    same(f, g, lambda h: graded(h, X))


@pytest.mark.parametrize("residuals", MODES)
def test_keywords_and_constants(residuals):
    def over(sin):
        def run(x, power, *, scale, mode="sin", shift=None):
            y = sin(x) if mode == "sin" else x
            return (y**power) * scale["by"] + (0.0 if shift is None else shift)

        return run

    f, g = torch2jax(over(lambda x: torch.sin(busy(x))), residuals=residuals), over(jnp.sin)
    calls = [
        lambda h: lambda x, s: h(x, 2, scale={"by": s}),
        lambda h: lambda x, s: h(x, 3, scale={"by": s, "unused": "text"}, mode="id"),
        lambda h: lambda x, s: h(x, 2, scale={"by": 0.5}, shift=s),
        lambda h: functools.partial(lambda x, s, power: h(x, power, scale={"by": s}, shift=x), power=2),
    ]
    same(
        f,
        g,
        lambda h: [graded(call(h), X, Y, argnums=(0, 1)) for call in calls],
        lambda h: [jax.vmap(jax.jacfwd(call(h)))(X, Y) for call in calls],
    )


def test_constant_outputs():
    f = torch2jax(lambda x: {"y": torch.sin(busy(x)), "name": "torch", "n": 3})
    (value, aux), grad = jax.value_and_grad(lambda x: ((o := f(x))["y"].sum(), (o["name"], o["n"])), has_aux=True)(X)
    assert aux == ("torch", 3)
    agree((value, grad), jax.value_and_grad(lambda x: jnp.sin(x).sum())(X))


# --- shapes -------------------------------------------------------------------------------------------------------


@pytest.mark.thinned(4)
@pytest.mark.parametrize("residuals", MODES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 2), (0,), (2, 0)], ids=str)
def test_shapes(shape, residuals):
    x = jnp.asarray(np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)) + 0.2
    f, g = torch2jax(lambda x: torch.sin(busy(x)) * x.sum(), residuals=residuals), lambda x: jnp.sin(x) * x.sum()
    same(
        f,
        g,
        lambda h: graded(h, x),
        lambda h: jax.jvp(h, (x,), (x,)),
        lambda h: jax.hessian(lambda x: h(x).sum())(x),
        lambda h: jax.vmap(jax.grad(lambda x: h(x).sum()))(jnp.stack([x, 2 * x])),
    )


# --- constants to differentiation ---------------------------------------------------------------------------------


def torch_three(p, x, q):
    return busy(p["w"]) * torch.log(x) + p["b"] * q


def jnp_three(p, x, q):
    return p["w"] * jnp.log(x) + p["b"] * q


P3 = {"w": X, "b": Y}
POSITIVE = jnp.abs(X) + 1


def held(p, x, q, *, wb=(False, False), x_held=False, q_held=False):
    """`jnp_three` with `jax.lax.stop_gradient` on what is held constant."""
    stop = jax.lax.stop_gradient
    p = {"w": stop(p["w"]) if wb[0] else p["w"], "b": stop(p["b"]) if wb[1] else p["b"]}
    return jnp_three(p, stop(x) if x_held else x, stop(q) if q_held else q)


CONSTANT = {
    "number": ({"nondiff_argnums": 1}, {"x_held": True}),
    "numbers": ({"nondiff_argnums": (0, 2)}, {"wb": (True, True), "q_held": True}),
    "all": ({"nondiff_argnums": (0, 1, 2)}, {"wb": (True, True), "x_held": True, "q_held": True}),
    "full mask": ({"nondiff_mask": ({"w": False, "b": True}, True, False)}, {"wb": (False, True), "x_held": True}),
    "prefix mask": ({"nondiff_mask": (True, False, False)}, {"wb": (True, True)}),
    "mask as a list": ({"nondiff_mask": [{"w": True, "b": False}, False, True]}, {"wb": (True, False), "q_held": True}),
    "both": (
        {"nondiff_argnums": 2, "nondiff_mask": ({"w": True, "b": False}, False, False)},
        {"wb": (True, False), "q_held": True},
    ),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("residuals", MODES)
@pytest.mark.parametrize("name", CONSTANT)
def test_constants_have_zero_gradients(name, residuals):
    options, expected = CONSTANT[name]
    f, g = torch2jax(torch_three, residuals=residuals, **options), functools.partial(held, **expected)
    args = (P3, POSITIVE, Y)
    same(
        f,
        g,
        lambda h: graded(h, *args, argnums=(0, 1, 2)),
        lambda h: jax.jvp(h, args, args),
        lambda h: jax.vmap(jax.grad(lambda *a: total(h(*a)), argnums=(0, 1)))(*args),
    )


def torch_root(w, x, y):
    return torch.where(x > 0, torch.sqrt(x), 0.0) * busy(w) + y


@pytest.mark.parametrize("options", [{"nondiff_argnums": 1}, {"nondiff_mask": (False, True, False)}], ids=str)
@pytest.mark.parametrize("residuals", MODES)
def test_infinite_derivatives_of_constants_do_not_leak(options, residuals):
    # The derivative with respect to `x` is not a number where x <= 0.
    x = jnp.asarray([[0.0, 1.0, -1.0], [-jnp.inf, 9.0, 4.0]])
    f = torch2jax(torch_root, residuals=residuals, **options)
    root = jnp.asarray([[0.0, 1.0, 0.0], [0.0, 3.0, 2.0]])
    same(
        f,
        lambda w, x, y: root * w + y,
        lambda h: graded(h, X, x, Y, argnums=(0, 1, 2)),
        lambda h: jax.jvp(h, (X, x, Y), (Y, jnp.full((2, 3), jnp.nan), X)),
        lambda h: jax.jvp(jax.grad(lambda *a: total(h(*a)), argnums=(0, 2)), (X, x, Y), (Y, x, X)),
    )


def test_without_it_the_derivative_is_not_a_number():
    x = jnp.asarray([[0.0, 1.0, -1.0], [-jnp.inf, 9.0, 4.0]])
    gradient = jax.grad(lambda *a: total(torch2jax(torch_root)(*a)), argnums=1)(X, x, Y)
    assert np.isnan(np.asarray(gradient)).tolist() == [[True, False, True], [True, False, False]]


def test_constants_that_are_not_there_are_refused():
    for options in ({"nondiff_argnums": 3}, {"nondiff_mask": ({"w": True}, False, False)}, {"nondiff_mask": (True,)}):
        with pytest.raises(ArgumentError, match="nondiff_"):
            torch2jax(torch_three, **options)(P3, POSITIVE, Y)


# --- outputs that are inputs --------------------------------------------------------------------------------------

ALIASES = {
    "an input": (lambda x: x, lambda x: x),
    "a view": (lambda x: x.T, lambda x: x.T),
    "a row": (lambda x: x[1], lambda x: x[1]),
    "an input and more": (lambda x: (x, torch.sin(busy(x))), lambda x: (x, jnp.sin(x))),
    "a view of a result": (lambda x: torch.sin(busy(x)).T, lambda x: jnp.sin(x).T),
    "a flattened result": (lambda x: torch.sin(busy(x)).reshape(-1), lambda x: jnp.sin(x).reshape(-1)),
    "an expanded result": (
        lambda x: torch.sin(busy(x)).sum().expand(3),
        lambda x: jnp.broadcast_to(jnp.sin(x).sum(), (3,)),
    ),
    "parts of one result": (lambda x: tuple(torch.sin(busy(x)).unbind()), lambda x: tuple(jnp.sin(x))),
}


@pytest.mark.thinned(4)
@pytest.mark.parametrize("residuals", MODES)
@pytest.mark.parametrize("name", ALIASES)
def test_outputs_that_share_memory(name, residuals):
    fn, g = ALIASES[name]
    f = torch2jax(fn, residuals=residuals)
    same(
        f,
        g,
        lambda h: h(X),
        lambda h: graded(h, X),
        lambda h: jax.jvp(h, (X,), (Y,)),
        lambda h: jax.vmap(jax.jacrev(h))(jnp.stack([X, Y])),
        lambda h: jax.hessian(lambda x: total(h(x)))(X),
    )


def test_the_same_result_twice():
    f = torch2jax(lambda x: (lambda y: (y, y, x))(torch.sin(busy(x))))
    same(f, lambda x: (jnp.sin(x), jnp.sin(x), x), lambda h: graded(h, X))


@pytest.mark.parametrize("residuals", MODES)
def test_an_output_written_to_out(residuals):
    f = torch2jax(lambda x, y, out=None: torch.mul(torch.sin(busy(x)), y, out=out), outputs="out", residuals=residuals)
    g = lambda x, y: jnp.sin(x) * y
    same(
        f,
        g,
        lambda h: h(X, Y),
        lambda h: graded(h, X, Y, argnums=(0, 1)),
        lambda h: jax.vmap(h)(X, Y),
        lambda h: jax.hessian(lambda x: total(h(x, Y)))(X),
    )


@pytest.mark.parametrize("outputs", ["copy", "auto"])
def test_large_outputs(outputs):
    x = jnp.linspace(-1.0, 1.0, 1 << 16)
    f = torch2jax(lambda x: torch.sin(x) * 2, outputs=outputs)
    g = lambda x: jnp.sin(x) * 2
    step, reference = (jax.jit(functools.partial(graded, h)) for h in (f, g))
    for _ in range(3):
        agree(step(x), reference(x), 1e-4)
    same(f, g, lambda h: jax.jvp(h, (x,), (x,)))


# --- in place -----------------------------------------------------------------------------------------------------


def torch_in_place(x):
    y = torch.sin(busy(x))
    y.mul_(2)
    y[0] += y[1]
    z = torch.zeros_like(x)
    z.add_(y)
    return z


def jnp_in_place(x):
    y = 2 * jnp.sin(x)
    return y.at[0].add(y[1])


@pytest.mark.parametrize("residuals", MODES)
def test_in_place_on_tensors_of_its_own(residuals):
    f = torch2jax(torch_in_place, residuals=residuals)
    same(
        f,
        jnp_in_place,
        lambda h: graded(h, X),
        lambda h: jax.jvp(h, (X,), (Y,)),
        lambda h: jax.hessian(lambda x: total(h(x)))(X),
        lambda h: jax.vmap(jax.grad(lambda x: total(h(x))))(jnp.stack([X, Y])),
    )


def update(x, y):
    x.mul_(y)
    return torch.sin(x)


def changes(f):
    """`f`, whose first call warns that it gets copies."""
    with warns(PerformanceWarning, what="changes args[0]"):
        jax.eval_shape(f, X, Y)
    return f


@pytest.mark.parametrize("residuals", MODES)
def test_a_function_that_changes_its_argument_gets_a_copy(residuals):
    f, g = changes(torch2jax(update, residuals=residuals)), lambda x, y: jnp.sin(x * y)
    x = X + 0
    same(
        f,
        g,
        lambda h: graded(h, x, Y, argnums=(0, 1)),
        lambda h: jax.jvp(h, (x, Y), (Y, X)),
        lambda h: jax.hessian(lambda x: total(h(x, Y)))(x),
        tolerance=1e-4,
    )
    agree(jax.vjp(f, x, Y)[1](X), jax.vjp(g, X, Y)[1](X))
    np.testing.assert_array_equal(np.asarray(x), np.asarray(X))


@pytest.mark.parametrize("residuals", MODES)
def test_mutable_arguments_under_grad(residuals):
    def sgd(x, y):
        x.mul_(y).add_(busy(y))
        return x

    f = torch2jax(sgd, mutable_argnums=0, residuals=residuals)
    g = lambda x, y: x * y + y
    x = X + 0
    same(
        f,
        g,
        lambda h: h(x, Y),
        lambda h: graded(h, x, Y, argnums=(0, 1)),
        lambda h: jax.jvp(h, (x, Y), (Y, X)),
        lambda h: jax.vmap(h)(x, Y),
        lambda h: jax.vmap(jax.grad(lambda *a: total(h(*a)), argnums=(0, 1)))(x, Y),
    )
    agree(jax.vjp(f, x, Y)[1](X), jax.vjp(g, X, Y)[1](X))
    np.testing.assert_array_equal(np.asarray(x), np.asarray(X))
    step = jax.jit(jax.value_and_grad(lambda x: f(x, Y).sum()), donate_argnums=0)
    agree(step(x), jax.value_and_grad(lambda x: g(x, Y).sum())(X))


# --- any tree of any shapes ---------------------------------------------------------------------------------------

SHAPES = st.sampled_from([(), (1,), (2,), (2, 3), (0,), (1, 2)])
TREES = st.recursive(
    SHAPES.map(np.zeros),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=2),
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=2),
        st.tuples(inner, st.none()),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=3,
)


@hypothesis.given(
    tree=TREES, is_list=st.booleans(), residuals=st.sampled_from(["auto", "recompute"]), seed=st.integers(0, 9)
)
@hypothesis.settings(max_examples=15)
def test_any_tree(tree, is_list, residuals, seed):
    generator = np.random.default_rng(seed)
    tree = jax.tree.map(lambda a: jnp.asarray(generator.normal(size=a.shape), jnp.float32), tree)

    def over(sin):
        def run(tree):
            whole = sum(leaf.sum() for leaf in jax.tree.leaves(tree))
            out = jax.tree.map(lambda leaf: sin(leaf) * whole, tree)
            return [out, whole] if is_list else {"out": out, "whole": whole}

        return run

    f, g = torch2jax(over(lambda x: torch.sin(busy(x))), residuals=residuals), over(jnp.sin)
    same(f, g, lambda h: graded(h, tree), lambda h: jax.jvp(h, (tree,), (tree,)), tolerance=1e-4)
