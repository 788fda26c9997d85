"""Programs that mix the examples of several calls, or of one: which graph is kept where decides no result."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax
from t2j_autodiff import checkpoint_policy, clear_residuals, torch2jax
from t2j_autodiff._residuals.store import kept_graphs

X = 0.1 * jnp.arange(1.0, 5.0)
SQUARE = 0.1 * jnp.arange(1.0, 5.0).reshape(2, 2)
P = {"some": jnp.array([True, False, True, False]), "all": jnp.ones(4, bool), "none": jnp.zeros(4, bool)}


def loop(m, x):
    for _ in range(8):  # more operations than a function has that is run again
        x = m.tanh(m.sin(x))
    return x


def in_torch():
    return torch2jax(functools.partial(loop, torch))


in_jnp = functools.partial(loop, jnp)


@pytest.fixture(autouse=True)
def nothing_kept():
    clear_residuals()
    yield
    clear_residuals()


def close(mine, other):
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# --- calls that JAX selects between -----------------------------------------------------------------------------------


def cond(f, p, x):
    return lax.cond(p, f, lambda x: f(-2 * x), x)


def nested_cond(f, p, x):
    return lax.cond(p, lambda x: cond(f, x > 0.2, x), lambda x: f(-2 * x), x)


def one_branch(f, p, x):
    return lax.cond(p, f, lambda x: 3 * x, x)


def switch(f, p, x):
    index = p.astype(int) + (x > 0.2).astype(int)
    return lax.switch(index, [f, lambda x: f(-2 * x), lambda x: f(f(3 * x))], x)


def piecewise(f, p, x):
    return jnp.piecewise(x, [x < 0.2, p], [lambda x: f(-x), f, lambda x: f(3 * x)])


def scan_of_cond(f, p, x):
    def step(c, _):
        y = lax.cond((c > 0.3) ^ p, lambda c: 0.7 * f(c), lambda c: f(-c) + 0.6, c)
        return y, c

    return lax.scan(step, x, None, 4)[1].sum()


def cond_of_scan(f, p, x):
    steps = lambda scale: lambda x: lax.scan(lambda c, _: (f(scale * c), None), x, None, 3)[0]
    return lax.cond(p, steps(1), steps(-2), x)


def shared_operand(f, p, x):
    """One branch has no operand of the batch, so that its call is not batched."""
    return lax.cond(p, lambda x: f(x), lambda x: f(jnp.float32(0.3)) * x, x)


def two_functions(f, p, x):
    g = torch2jax(lambda x: functools.partial(loop, torch)(x) ** 2) if f is not in_jnp else lambda x: in_jnp(x) ** 2
    return lax.cond(p, f, g, x)


SELECTIONS = [
    *(cond, nested_cond, one_branch, switch, piecewise, scan_of_cond, cond_of_scan, shared_operand, two_functions)
]


@pytest.mark.thinned(5)
@pytest.mark.parametrize("jit", [lambda g: g, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_gradient_of_a_selection(selection, jit):
    def gradients(f):
        return jax.vmap(jax.grad(functools.partial(selection, f), 1))

    mine, other = jit(gradients(in_torch())), jax.jit(gradients(in_jnp))
    for name in ("some", "all", "none", "some"):
        close(mine(P[name], X), other(P[name], X))


WRAPS = {
    "remat": lambda h: jax.grad(jax.checkpoint(h), 1),
    "remat with policy": lambda h: jax.grad(jax.checkpoint(h, policy=checkpoint_policy), 1),
    "jacrev": lambda h: jax.jacrev(lambda p, x: h(p, x) * jnp.arange(3.0), 1),
    "hessian": lambda h: jax.hessian(h, 1),
    "reverse of reverse": lambda h: jax.grad(jax.grad(h, 1), 1),
    "linearize": lambda h: lambda p, x: jax.linearize(functools.partial(h, p), x)[1](x),
    "of a batch": lambda h: (
        lambda p, x: jax.grad(lambda x: jax.vmap(h)(jnp.stack([p, ~p]), jnp.stack([x, 2 * x])).sum())(x)
    ),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("wrap", WRAPS)
def test_derivatives_of_a_selection(wrap):
    derivative = lambda f: jax.jit(jax.vmap(WRAPS[wrap](functools.partial(cond, f))))
    mine, other = derivative(in_torch()), derivative(in_jnp)
    for p in P.values():
        close(mine(p, X), other(p, X))


def test_experts_that_are_chosen_by_example():
    def loss(f, weights, k, x):
        return lax.switch(k, [lambda x, i=i: f(x * weights[i]).sum() for i in range(3)], x)

    weights, k = jnp.array([0.3, -0.5, 0.9]), jnp.array([2, 0, 1, 2])
    per_example = lambda f: jax.jit(jax.vmap(jax.grad(functools.partial(loss, f), (0, 2)), (None, 0, 0)))
    close(per_example(in_torch())(weights, k, X), per_example(in_jnp)(weights, k, X))
    assert not kept_graphs


@pytest.mark.thinned(4)
@pytest.mark.parametrize("pattern", [["some"], ["all"], ["all", "none"], ["some", "all", "some", "none"]])
@pytest.mark.parametrize("selection", [cond, one_branch, shared_operand, two_functions])
def test_many_gradients_of_a_selection_leave_few_graphs_behind(selection, pattern):
    gradients = jax.jit(jax.vmap(jax.grad(functools.partial(selection, in_torch()), 1)))
    left = []
    for name in pattern * (60 // len(pattern)):
        jax.block_until_ready(gradients(P[name], X))
        left.append(len(kept_graphs))
    assert max(left[30:]) <= max(left[:30])
    if pattern == ["some"] and selection is not two_functions:
        assert not max(left)


# --- pullbacks that the user mixes ------------------------------------------------------------------------------------


def pulls_of(f, x=X):
    return jax.vmap(lambda x: jax.vjp(f, x)[1])(x)


def pulled(pulls):
    return jax.vmap(lambda pull: pull(1.0)[0])(pulls)


def mapped(function, *pulls):
    """`jax.tree.map` over pullbacks of one function, whose code JAX does not know to be the same."""
    leaves = zip(*map(jax.tree.leaves, pulls), strict=True)
    return jax.tree.unflatten(jax.tree.structure(pulls[0]), [function(*r) for r in leaves])


def rows(index):
    return lambda f: pulled(jax.tree.map(lambda r: r[jnp.array(index)], pulls_of(f)))


def transposed(f):
    pulls = jax.vmap(jax.vmap(lambda x: jax.vjp(f, x)[1]), out_axes=1)(SQUARE)
    return jax.vmap(jax.vmap(lambda pull: pull(1.0)[0]))(pulls)


def permuted_between_examples(f):
    def one(x):
        pull = jax.tree.map(lambda r: lax.ppermute(r, "i", [(i, (i + 1) % 4) for i in range(4)]), jax.vjp(f, x)[1])
        return pull(1.0)[0]

    return jax.vmap(one, axis_name="i")(X)


def summed_between_examples(f):
    def one(x):
        pull = jax.vjp(f, x)[1]
        first = jax.tree.map(lambda r: lax.all_gather(r, "i")[0], pull)
        return pull(1.0)[0] + first(1.0)[0]

    return jax.vmap(one, axis_name="i")(X)


def shuffled_from_two(f):
    return pulled(mapped(lambda a, b: jnp.concatenate([a, b])[jnp.array([0, 5, 2, 7])], pulls_of(f), pulls_of(f, -X)))


def selected_from_two(f):
    select = lambda a, b: jnp.where(P["some"], a, b)
    return pulled(mapped(select, pulls_of(f), pulls_of(f, -X)))


def stacked(f):
    pulls = [jax.vjp(f, x)[1] for x in X]
    return pulled(mapped(lambda *r: jnp.stack(r), *pulls))


def repeated(f):
    pull = jax.vjp(f, X[1])[1]
    return pulled(jax.tree.map(lambda r: jnp.stack([r, r, r]), pull))


def one_by_one(f):
    pulls = pulls_of(f)
    return [jax.tree.map(lambda r, i=i: r[i], pulls)(1.0)[0] for i in (2, 0, 3)]


def one_of_all(f):
    return jax.tree.map(lambda r: r[2], pulls_of(f))(1.0)[0]


def in_a_scan(f):
    pulls = jax.tree.map(lambda r: r[jnp.array([2, 0, 3, 1, 1])], lax.map(lambda x: jax.vjp(f, x)[1], X))
    return lax.map(lambda pull: pull(1.0)[0], pulls)


def batch_in_a_scan(f):
    return lax.map(lambda pull: pull(1.0)[0], pulls_of(f))


def in_chunks(f):
    return lax.map(pulled, jax.tree.map(lambda r: r.reshape(2, 2), pulls_of(f)))


def twice(f):
    pulls = pulls_of(f)
    return pulled(pulls), pulled(pulls)


def pushed(f):
    pushes = jax.vmap(lambda x: jax.linearize(f, x)[1])(X)
    return jax.vmap(lambda push: push(1.0))(jax.tree.map(lambda r: r[::-1], pushes))


def shared_in_the_inner_batch(f):
    g = lambda x, w: f(x) * f(w) * f(x + w)
    pulls = jax.vmap(jax.vmap(lambda x, w: jax.vjp(g, x, w)[1], (0, None)))(SQUARE, -X[:2])
    return jax.vmap(jax.vmap(lambda pull: pull(1.0)))(pulls)


MIXES = {
    "reversed": rows([3, 2, 1, 0]),
    "duplicated": rows([3, 3, 3, 3]),
    "part": rows([2, 1]),
    "first rows": rows([0, 1]),
    "more": rows([0, 1, 2, 3, 0, 1]),
    "same": rows([0, 1, 2, 3]),
    **{
        mix.__name__: mix
        for mix in (
            *(transposed, permuted_between_examples, summed_between_examples, shuffled_from_two, selected_from_two),
            *(stacked, repeated, one_by_one, one_of_all, in_a_scan, batch_in_a_scan, in_chunks, twice, pushed),
            shared_in_the_inner_batch,
        )
    },
}


@pytest.mark.thinned(5)
@pytest.mark.parametrize("jit", [lambda g: g, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("mix", MIXES)
def test_a_pullback_of_mixed_examples(mix, jit):
    f = in_torch()
    mine, other = jit(lambda: MIXES[mix](f)), jax.jit(lambda: MIXES[mix](in_jnp))()
    for _ in range(2):
        close(mine(), other)
        assert not kept_graphs


def test_a_pullback_with_its_residuals_scaled():
    f = in_torch()
    waiting = [jax.vjp(f, x)[1] for x in X]  # whose graphs the scaled numbers could be of
    for scale in (2, 3, -1):
        scaled = jax.tree.map(lambda r, scale=scale: scale * r, jax.vjp(f, X[0])[1])
        close(scaled(1.0)[0], jax.grad(in_jnp)(scale * X[0]))
    close([pull(1.0)[0] for pull in waiting], [jax.grad(in_jnp)(x) for x in X])


def weighted(f):
    pulls = jax.vmap(jax.vmap(lambda x, w: jax.vjp(f, x, w)[1], (0, None)))(SQUARE, jnp.array([0.5, -0.9]))
    return jax.vmap(jax.vmap(lambda pull: pull(1.0)))(pulls)


def test_an_operand_that_only_the_outer_batch_had_comes_back_with_both_axes():
    def steps(m, x, w):
        for _ in range(8):
            x = m.tanh(m.sin(x) * w + x)
        return x

    close(weighted(torch2jax(functools.partial(steps, torch))), weighted(functools.partial(steps, jnp)))


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_batches_that_are_mixed_again_and_again_are_not_kept_any_more():
    f = in_torch()
    mine, other = (jax.jit(jax.vmap(jax.grad(functools.partial(cond, g), 1))) for g in (f, in_jnp))
    for _ in range(3):
        close(mine(P["some"], X), other(P["some"], X))
    assert "in batches: recompute (JAX mixes the examples of several calls" in f.explain()


def test_batches_that_are_mixed_now_and_then_are_kept():
    f = in_torch()
    mixed, plain = MIXES["reversed"](in_jnp), jax.vmap(jax.grad(in_jnp))(X)
    for _ in range(4):
        close(MIXES["reversed"](f), mixed)
        close(jax.vmap(jax.grad(f))(X), plain)
    assert "in batches" not in f.explain()


def test_a_batch_of_nothing_leaves_nothing_behind():
    assert jax.vmap(jax.grad(in_torch()))(X[:0]).shape == (0,)
    assert not kept_graphs


def test_a_graph_that_waits_is_not_mixed_up_with_an_unbatched_one():
    f = in_torch()
    pulls, pull = pulls_of(f), jax.vjp(f, X[1])[1]
    close(pull(1.0)[0], jax.grad(in_jnp)(X[1]))
    assert len(kept_graphs) == 1
    close(pulled(pulls), jax.vmap(jax.grad(in_jnp))(X))
