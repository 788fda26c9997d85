"""Functions that write into their arguments: what JAX holds never changes unless it was donated."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises, warns
from t2j_core import ArgumentError, PerformanceWarning, Size, TensorMutationError, torch2jax

N = 1 << 10


def array(n: int = N, start: float = 0.0) -> jax.Array:
    return jnp.arange(n, dtype=jnp.float32) + start


def sgd(parameter, gradient):
    parameter.add_(gradient, alpha=-0.5)
    return parameter


# --- mutable_argnums ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [{}, {"output_shapes": Size(N)}], ids=["inferred", "declared"])
def test_with_donation_the_update_is_in_place(declared):
    f = jax.jit(torch2jax(sgd, mutable_argnums=0, **declared), donate_argnums=0)
    x, g = array(), jnp.ones(N)
    pointer = x.unsafe_buffer_pointer()
    for step in range(1, 4):
        x = f(x, g)
        assert x.unsafe_buffer_pointer() == pointer
        np.testing.assert_array_equal(np.asarray(x), np.arange(N, dtype=np.float32) - np.float32(0.5 * step))


@pytest.mark.parametrize("declared", [{}, {"output_shapes": Size(N)}], ids=["inferred", "declared"])
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_without_donation_the_argument_stays_as_it_is(jitted, declared):
    f = torch2jax(sgd, mutable_argnums=(0,), **declared)
    f = jax.jit(f) if jitted else f
    x, g = array(), jnp.ones(N)
    for _ in range(2):
        y = f(x, g)
        np.testing.assert_array_equal(np.asarray(y), np.arange(N, dtype=np.float32) - np.float32(0.5))
        np.testing.assert_array_equal(np.asarray(x), np.arange(N, dtype=np.float32))
        assert y.unsafe_buffer_pointer() != x.unsafe_buffer_pointer()


class State(NamedTuple):
    parameter: Any
    steps: Any


def test_an_argument_whose_fields_have_names():
    def step(state, gradient):
        return State(sgd(state.parameter, gradient), state.steps.add_(1))

    f = jax.jit(torch2jax(step, mutable_argnums=0), donate_argnums=0)
    state = State(array(), jnp.zeros((), jnp.int32))
    pointer = state.parameter.unsafe_buffer_pointer()
    state = f(state, jnp.ones(N))
    assert state.parameter.unsafe_buffer_pointer() == pointer
    np.testing.assert_array_equal(np.asarray(state.parameter), np.arange(N, dtype=np.float32) - np.float32(0.5))
    assert int(state.steps) == 1


def test_the_donated_argument_is_gone():
    x = array()
    jax.jit(torch2jax(sgd, mutable_argnums=0), donate_argnums=0)(x, jnp.ones(N))
    assert x.is_deleted()
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(x)


def test_in_a_loop():
    f = torch2jax(sgd, mutable_argnums=0)

    @jax.jit
    def train(x, g):
        return jax.lax.fori_loop(0, 10, lambda _, c: f(c, g), x)

    x = array()
    np.testing.assert_array_equal(np.asarray(train(x, jnp.ones(N))), np.arange(N, dtype=np.float32) - 5)
    np.testing.assert_array_equal(np.asarray(x), np.arange(N, dtype=np.float32))


def test_a_value_that_is_used_again_after_the_call():
    f = torch2jax(sgd, mutable_argnums=0)

    @jax.jit
    def program(x, g):
        y = x * 2
        z = f(y, g)
        return y, z, f(y, g) + y

    y, z, w = program(array(), jnp.ones(N))
    base = np.arange(N, dtype=np.float32) * 2
    np.testing.assert_array_equal(np.asarray(y), base)
    np.testing.assert_array_equal(np.asarray(z), base - np.float32(0.5))
    np.testing.assert_array_equal(np.asarray(w), 2 * base - np.float32(0.5))


def adam(params, state, gradients):
    for name, p in params.items():
        state["m"][name].mul_(0.9).add_(gradients[name], alpha=0.1)
        p.sub_(state["m"][name])
    state["count"] += 1
    return params, state


def test_trees_of_arguments():
    params = {"w": array(8), "b": jnp.ones(3)}
    state = {"m": jax.tree.map(jnp.zeros_like, params), "count": jnp.zeros((), jnp.int32)}
    gradients = jax.tree.map(jnp.ones_like, params)
    step = jax.jit(torch2jax(adam, mutable_argnums=(0, 1)), donate_argnums=(0, 1))
    pointers = jax.tree.map(lambda x: x.unsafe_buffer_pointer(), (params, state["m"]))
    for _ in range(2):
        params, state = step(params, state, gradients)
    assert jax.tree.map(lambda x: x.unsafe_buffer_pointer(), (params, state["m"])) == pointers
    assert int(state["count"]) == 2
    np.testing.assert_allclose(np.asarray(state["m"]["b"]), np.full(3, 0.19), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(params["w"]), np.arange(8) - 0.1 - 0.19, rtol=1e-5, atol=1e-6)


def test_only_some_leaves_of_a_tree_are_written():
    f = torch2jax(lambda tree: {"a": tree["a"].add_(1), "b": tree["b"] * 2}, mutable_argnums=0)
    tree = {"a": array(4), "b": array(4)}
    out = f(tree)
    assert np.asarray(out["a"]).tolist() == [1, 2, 3, 4]
    assert np.asarray(out["b"]).tolist() == [0, 2, 4, 6]
    assert np.asarray(tree["a"]).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("donate", [(), (0, 1)], ids=["kept", "donated"])
@pytest.mark.parametrize("declared", [{}, {"output_shapes": (Size(N), Size(N))}], ids=["inferred", "declared"])
def test_results_in_swapped_places(donate, declared):
    def function(a, b):
        a.add_(1)
        b.mul_(2)
        return b, a

    f = jax.jit(torch2jax(function, mutable_argnums=(0, 1), **declared), donate_argnums=donate)
    b, a = f(array(start=10), array(start=20))
    np.testing.assert_array_equal(np.asarray(a), np.asarray(array(start=11)))
    np.testing.assert_array_equal(np.asarray(b), np.asarray(array(start=20)) * 2)


OVERLAPS = {
    "transpose": lambda m: (m.add_(1).T, m),
    "transpose second": lambda m: (m.add_(1), m.T),
    "row": lambda m: (m.add_(1), m[0]),
    "row first": lambda m: (m.add_(1)[0], m),
    "reversed": lambda m: (m.add_(1), m.flip(0)),
    "shifted": lambda m: (m.add_(1), m.flatten()[1:], m.flatten()[:-1]),
    "twice": lambda m: (m.add_(1), m),
    "thrice": lambda m: (m.add_(1), m, m.view(m.shape)),
    "flat": lambda m: (m.add_(1), m.view(-1)),
    "overlapping windows": lambda m: (m.add_(1), m.flatten().unfold(0, 3, 1)),
    "expanded": lambda m: (m.add_(1), m[:1].expand(5, 3)),
    "as another dtype": lambda m: (m.add_(1), m.view(torch.int32)),
    "and a copy": lambda m: (m.add_(1), m.clone()),
    "copy first": lambda m: (m.add_(1).clone(), m),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("donate", [(), (0,)], ids=["kept", "donated"])
@pytest.mark.parametrize("name", OVERLAPS)
def test_results_that_overlap_in_memory(name, donate):
    values = np.arange(9, dtype=np.float32).reshape(3, 3)
    f = jax.jit(torch2jax(OVERLAPS[name], mutable_argnums=0), donate_argnums=donate)
    x = jnp.asarray(values)
    got = f(x)
    expected = OVERLAPS[name](torch.from_numpy(values.copy()))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(a), b.numpy())
    if not donate:
        np.testing.assert_array_equal(np.asarray(x), values)


def test_a_large_overlap():
    side = 600
    values = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    f = jax.jit(torch2jax(lambda m: (m.add_(1).T, m), mutable_argnums=0), donate_argnums=0)
    transposed, plain = f(jnp.asarray(values))
    np.testing.assert_array_equal(np.asarray(plain), values + np.float32(1))
    np.testing.assert_array_equal(np.asarray(transposed), (values + np.float32(1)).T)


def test_one_array_given_twice():
    f = torch2jax(lambda a, b: (a.add_(1), a + b), mutable_argnums=0)
    x = array(4)
    for call in (f, jax.jit(f)):
        a, total = call(x, x)
        assert np.asarray(a).tolist() == [1, 2, 3, 4]
        assert np.asarray(total).tolist() == [1, 3, 5, 7]
        assert np.asarray(x).tolist() == [0, 1, 2, 3]


def test_a_wide_dtype_that_jax_narrowed():
    f = torch2jax(lambda n: n.add_(1), torch.zeros(3, dtype=torch.int64), mutable_argnums=0)
    x = jnp.arange(3, dtype=jnp.int32)
    assert np.asarray(f(x)).tolist() == [1, 2, 3]
    assert np.asarray(x).tolist() == [0, 1, 2]


def test_an_argument_that_is_listed_and_not_written():
    f = torch2jax(lambda a, b: a + b, mutable_argnums=(0, 1))
    assert np.asarray(f(array(3), array(3))).tolist() == [0, 2, 4]


def test_writing_through_a_view():
    def function(a):
        a[1:3] = 0
        a.view(-1)[0] = 9
        return a

    for options in ({"mutable_argnums": 0}, {"mutable_argnums": 0, "output_shapes": Size(4)}):
        x = array(4)
        assert np.asarray(torch2jax(function, **options)(x)).tolist() == [9, 0, 0, 3]
        assert np.asarray(x).tolist() == [0, 1, 2, 3]


def test_a_keyed_function_counts_its_key():
    f = torch2jax(lambda a: a.add_(torch.rand(4)), mutable_argnums=1, rng=True)
    x = array(4)
    first, second = f(jax.random.key(0), x), f(jax.random.key(0), x)
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    assert np.asarray(x).tolist() == [0, 1, 2, 3]
    assert (np.asarray(first) >= np.asarray(x)).all()


# --- wrong use -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [lambda a: a.add_(1).sum(), lambda a: (a.add_(1), a.clone())[1], lambda a: a.add_(1)[1:], lambda a: a.add_(1).T],
    ids=["sum", "clone", "slice", "transpose"],
)
def test_a_written_argument_that_is_not_returned(function):
    with raises(TensorMutationError, what=("changes args[0]", "`mutable_argnums`"), remedy="Return"):
        torch2jax(function, mutable_argnums=0)(jnp.ones((2, 3)))


def test_a_declared_output_that_cannot_be_the_written_argument():
    with raises(TensorMutationError, what="sgd changes args[0]", got="(f32[5])"):
        torch2jax(sgd, mutable_argnums=0, output_shapes=Size(5))(array(4), array(4))


@pytest.mark.parametrize("number", [-1, 1, 5, True, "0", 1.0, (0, -1)], ids=repr)
def test_a_position_that_no_argument_has(number):
    # Regression: these were ignored without a word.
    with pytest.raises(ArgumentError, match="mutable_argnums"):
        torch2jax(lambda a: a.add_(1), mutable_argnums=number)(array(4))


def test_an_unlisted_argument_is_copied_with_a_warning():
    f = torch2jax(sgd)
    x = array(4)
    with warns(PerformanceWarning, times=1, what=("sgd changes args[0]", "`mutable_argnums`")):
        y = f(x, jnp.ones(4))
    assert np.asarray(y).tolist() == [-0.5, 0.5, 1.5, 2.5]
    assert np.asarray(x).tolist() == [0, 1, 2, 3]


@pytest.mark.thinned(2)
@pytest.mark.filterwarnings("ignore::t2j_core.PerformanceWarning")
@pytest.mark.parametrize(
    "function",
    [
        lambda a: a.mul_(2),
        lambda a: a.T.mul_(2).T,
        lambda a: torch.sin(a, out=a),
        lambda a: a.index_fill_(0, torch.tensor([0]), -1.0),
        lambda a: torch.nn.functional.relu(a, inplace=True),
        lambda a: a.detach().add_(1),
        lambda a: a.zero_(),
        lambda a: a.copy_(torch.ones(3, 2)),
    ],
    ids="mul T out index relu detach zero copy".split(),
)
@pytest.mark.parametrize("mutable", [(), 0], ids=["unlisted", "listed"])
def test_every_kind_of_writing_leaves_the_array_alone(function, mutable):
    values = np.arange(-3, 3, dtype=np.float32).reshape(3, 2)
    expected = function(torch.from_numpy(values.copy())).numpy()
    x = jnp.asarray(values)
    try:
        got = torch2jax(function, mutable_argnums=mutable)(x)
    except TensorMutationError:  # the result is a view of the argument, which is not the argument
        assert mutable == 0
        got = expected
    np.testing.assert_array_equal(np.asarray(got), expected)
    np.testing.assert_array_equal(np.asarray(x), values)


@pytest.mark.filterwarnings("ignore::t2j_core.PerformanceWarning")
def test_keyword_arguments_that_are_written():
    x = array(3)
    out = torch2jax(lambda *, a: a.add_(1))(a=x)
    assert np.asarray(out).tolist() == [1, 2, 3]
    assert np.asarray(x).tolist() == [0, 1, 2]


def test_writing_that_only_the_real_call_shows():
    def function(a):
        if not a.is_meta and a.sum() > 0:
            a.add_(1)
        return a * 2

    x = array(4)
    f = torch2jax(function, output_shapes=Size(4))
    with warns(PerformanceWarning, what=("function changes args[0]", "`mutable_argnums`")):
        first = f(x)
    for out in (first, f(x), jax.jit(f)(x)):
        np.testing.assert_array_equal(out, 2 * (np.asarray(x) + 1))
