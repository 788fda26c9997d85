"""`rng=True`: derivatives, batches and recomputation draw what the value drew."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import PerformanceWarning, module2jax, torch2jax

KEY = jax.random.key(3)
X = jnp.ones(6000)


def drop(x):
    return torch.nn.functional.dropout(x, 0.5)


@pytest.mark.parametrize("residuals", ["auto", "recompute"])
def test_one_mask_for_everything(residuals):
    f = torch2jax(drop, rng=True, residuals=residuals)
    mask = f(KEY, X)
    assert set(np.unique(mask)) == {0.0, 2.0}
    gradient = jax.grad(lambda x: f(KEY, x).sum())
    np.testing.assert_array_equal(jax.jit(f)(KEY, X), mask)
    np.testing.assert_array_equal(gradient(X), mask)
    np.testing.assert_array_equal(jax.jit(gradient)(X), mask)
    np.testing.assert_array_equal(jax.jvp(lambda x: f(KEY, x), (X,), (X,))[1], mask)
    np.testing.assert_array_equal(jax.grad(lambda x: jax.checkpoint(f)(KEY, x).sum())(X), mask)


def test_keys_differ():
    f = torch2jax(drop, rng=True)
    assert bool(jnp.any(f(KEY, X) != f(jax.random.key(4), X)))


@pytest.mark.parametrize("transform", ["value", "gradient"])
def test_a_batch_of_keys_draws_what_each_key_draws(transform):
    f = torch2jax(drop, rng=True)
    g = f if transform == "value" else jax.grad(lambda key, x: f(key, x).sum(), 1)
    keys = jax.random.split(KEY, 3)
    batch = jax.vmap(g, (0, None))(keys, X)
    for i in range(3):
        np.testing.assert_array_equal(batch[i], g(keys[i], X))
    both = jax.vmap(g)(keys, jnp.stack([X, 2 * X, 3 * X]))
    for i in range(3):
        np.testing.assert_array_equal(both[i], g(keys[i], (i + 1) * X))


def test_one_key_for_a_batch_draws_the_same_for_all():
    f = torch2jax(drop, rng=True)
    batch = jax.vmap(f, (None, 0))(KEY, jnp.stack([X, X]))
    np.testing.assert_array_equal(batch[0], f(KEY, X))
    np.testing.assert_array_equal(batch[1], f(KEY, X))


def test_different_numbers_in_one_call():
    calls = []

    def fn(x):
        if not x.is_meta:
            calls.append(1)
        return drop(x)

    f = torch2jax(fn, rng=True, vmap_randomness="different")
    batch = jax.vmap(f, (0, None))(jax.random.split(KEY, 3), X)
    assert len(calls) == 1
    assert len({np.asarray(row).tobytes() for row in batch}) == 3


def test_the_generators_are_as_they_were():
    f = torch2jax(drop, rng=True)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    jax.grad(lambda x: f(KEY, x).sum())(X)
    assert torch.equal(torch.rand(3), expected)


SMALL = jnp.ones(64)


@pytest.mark.parametrize("n", [64, 6000])  # run again, and kept
def test_one_mask_through_every_transformation(n):
    x = jnp.ones(n)
    f = torch2jax(lambda x: drop(x) * x, rng=True, depth=2)
    mask = f(KEY, x)
    loss = lambda x: f(KEY, x).sum()
    for wrap in (lambda g: g, jax.jit, jax.checkpoint, lambda g: jax.jit(jax.checkpoint(g))):
        np.testing.assert_array_equal(jax.grad(wrap(loss))(x), 2 * mask)
        np.testing.assert_array_equal(wrap(jax.grad(loss))(x), 2 * mask)
        np.testing.assert_array_equal(jax.jvp(wrap(lambda x: f(KEY, x)), (x,), (x,))[1], 2 * mask)
    np.testing.assert_array_equal(jax.jvp(jax.grad(loss), (x,), (x,))[1], 2 * mask)
    y, pull = jax.vjp(lambda x: f(KEY, x), x)
    np.testing.assert_array_equal(y, mask)
    for _ in range(2):  # the second time the forward runs again
        np.testing.assert_array_equal(pull(jnp.ones(n))[0], 2 * mask)


def test_every_jacobian_has_the_mask_of_the_value():
    f = torch2jax(drop, rng=True)
    g = lambda x: f(KEY, x)
    mask = np.diag(g(SMALL))
    np.testing.assert_array_equal(jax.jacrev(g)(SMALL), mask)
    np.testing.assert_array_equal(jax.jit(jax.jacfwd(g))(SMALL), mask)


def test_old_keys_are_the_same_as_new_ones():
    f = torch2jax(drop, rng=True)
    np.testing.assert_array_equal(f(jax.random.PRNGKey(3), X), f(KEY, X))


def test_a_scan_over_keys():
    f = torch2jax(drop, rng=True)
    keys = jax.random.split(KEY, 4)

    def total(x, f):
        return jax.lax.scan(lambda c, key: (c + f(key, x), f(key, x)), jnp.zeros_like(x), keys)

    for step in (f, jax.checkpoint(f)):
        summed, each = jax.jit(lambda x, step=step: total(x, step))(X)
        for i in range(4):
            np.testing.assert_array_equal(each[i], f(keys[i], X))
        gradient = jax.jit(jax.grad(lambda x, step=step: total(x, step)[0].sum()))(X)
        np.testing.assert_array_equal(gradient, summed)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("n", [64, 6000])
def test_batches_of_keys_in_every_mode(n, jitted):
    f = torch2jax(lambda x: drop(x) * x, rng=True)
    keys, xs = jax.random.split(KEY, 3), jnp.ones((3, n)) * jnp.arange(1.0, 4.0)[:, None]

    def modes(key, x):
        g = lambda x: f(key, x)
        return g(x), jax.grad(lambda x: g(x).sum())(x), jax.jvp(g, (x,), (x,))[1]

    batch = jax.vmap(modes)
    got = (jax.jit(batch) if jitted else batch)(keys, xs)
    for i in range(3):
        for mine, other in zip(got, modes(keys[i], xs[i]), strict=True):
            np.testing.assert_array_equal(mine[i], other)
    gradient = jax.grad(lambda xs: jax.vmap(f)(keys, xs).sum())(xs)
    np.testing.assert_array_equal(gradient, got[1])


def test_nested_batches_of_keys():
    f = torch2jax(drop, rng=True)
    keys = jax.random.split(KEY, (2, 3))
    got = jax.vmap(jax.vmap(f, (0, None)), (0, None))(keys, SMALL)
    for i in range(2):
        for j in range(3):
            np.testing.assert_array_equal(got[i, j], f(keys[i, j], SMALL))
    # keys along one axis, examples along the other
    xs = jnp.stack([SMALL, 2 * SMALL])
    for mapped in (
        jax.vmap(jax.vmap(f, (None, 0)), (0, None)),
        lambda keys, xs: jax.vmap(jax.vmap(f, (0, None)), (None, 0), 1)(keys, xs),
    ):
        got = mapped(keys[0], xs)
        for i in range(3):
            for j in range(2):
                np.testing.assert_array_equal(got[i, j], f(keys[0, i], xs[j]))


@pytest.mark.parametrize("method", ["auto", "vmap", "sequential"])
def test_one_key_in_every_mode(method):
    f = torch2jax(drop, rng=True, vmap_method=method)
    xs = jnp.stack([X, 2 * X])
    gradients = jax.vmap(jax.grad(lambda x: f(KEY, x).sum()))(xs)
    tangents = jax.vmap(lambda x: jax.jvp(lambda x: f(KEY, x), (x,), (x,))[1])(xs)
    for i in range(2):
        np.testing.assert_array_equal(jax.vmap(f, (None, 0))(KEY, xs)[i], f(KEY, xs[i]))
        np.testing.assert_array_equal(gradients[i], f(KEY, X))
        np.testing.assert_array_equal(tangents[i], f(KEY, xs[i]))


@pytest.mark.parametrize("residuals", ["auto", "recompute"])
@pytest.mark.parametrize("keys_are_batched", [False, True])
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_chosen_randomness_in_every_mode(randomness, keys_are_batched, residuals):
    f = torch2jax(drop, rng=True, vmap_randomness=randomness, residuals=residuals)
    key, axes = (jax.random.split(KEY, 3), (0, 0)) if keys_are_batched else (KEY, (None, 0))
    xs = jnp.stack([X, X, X])
    values = jax.vmap(f, axes)(key, xs)
    distinct = len({np.asarray(row).tobytes() for row in values})
    assert distinct == (1 if randomness == "same" else 3)
    np.testing.assert_array_equal(jax.jit(jax.vmap(f, axes))(key, xs), values)
    (_, ys), gradients = jax.vmap(
        jax.value_and_grad(lambda k, x: (lambda y: (y.sum(), y))(f(k, x)), 1, has_aux=True), axes
    )(key, xs)
    np.testing.assert_array_equal(gradients, ys)
    np.testing.assert_array_equal(ys, values)
    of_sum = jax.grad(lambda xs: jax.vmap(f, axes)(key, xs).sum())(xs)
    np.testing.assert_array_equal(of_sum, values)
    tangents = jax.vmap(lambda k, x: jax.jvp(lambda x: f(k, x), (x,), (x,))[1], axes)(key, xs)
    np.testing.assert_array_equal(tangents, values)


def test_the_original_function_does_not_depend_on_the_batch():
    f = torch2jax(drop, rng=True)
    before = f(KEY, X)
    jax.vmap(f, (None, 0))(KEY, jnp.stack([X, X]))
    jax.vmap(f, (0, None))(jax.random.split(KEY, 2), X)
    jax.vmap(jax.grad(lambda x: f(KEY, x).sum()))(jnp.stack([X, X]))
    np.testing.assert_array_equal(f(KEY, X), before)


@pytest.mark.parametrize("randomness", [None, "same", "different"])
@pytest.mark.filterwarnings("ignore:.*draws random numbers:t2j_core.T2jWarning")
def test_unseeded_randomness_of_a_batch(randomness):
    f = torch2jax(drop, vmap_randomness=randomness)
    xs = jnp.stack([X, X, X])
    both = jax.jit(jax.vmap(jax.value_and_grad(lambda x: (lambda y: (y.sum(), y))(f(x)), has_aux=True)))
    if randomness is None:  # torch's "error": the examples take turns
        with pytest.warns(PerformanceWarning, match="randomness"):
            (_, ys), gradients = jax.block_until_ready(both(xs))
    else:
        (_, ys), gradients = both(xs)
    np.testing.assert_array_equal(gradients, ys)
    assert len({np.asarray(row).tobytes() for row in ys}) == (1 if randomness == "same" else 3)


@pytest.mark.parametrize("method", ["auto", "vmap"])
@pytest.mark.filterwarnings("ignore:.*draws random numbers:t2j_core.T2jWarning")
def test_randomness_error_of_a_batch(method):
    f = torch2jax(drop, vmap_randomness="error", vmap_method=method)
    with pytest.raises(RuntimeError, match="randomness"):
        jax.vmap(f)(jnp.stack([X, X]))


def test_random_numbers_without_a_key_are_told_once_for_value_and_derivatives():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        f = torch2jax(lambda x: drop(x).sum(), residuals="recompute", vmap_randomness="different")
        f(X)
        for x in (X, X[:4]):
            jax.grad(f)(x)
            jax.jit(jax.grad(f))(x)
            jax.jvp(f, (x,), (x,))
            jax.vmap(f)(jnp.stack([x, x]))
    jax.effects_barrier()
    assert len([w for w in caught if "random numbers" in str(w.message)]) == 1


def test_training_a_module_with_dropout():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 600), torch.nn.Dropout(0.5), torch.nn.Linear(600, 1, bias=False))
    apply, variables = module2jax(module, train=True, rng=True)
    x = jnp.ones((4, 8))
    loss = lambda p, key: (apply(key, {"params": p, "buffers": {}}, x) ** 2).sum()
    value, gradients = jax.jit(jax.value_and_grad(loss))(variables["params"], KEY)
    np.testing.assert_allclose(value, loss(variables["params"], KEY), rtol=1e-6)
    # where all four rows drop a unit, its weights get no gradient: the same units in the forward and the backward
    _, tangent = jax.jvp(lambda p: loss(p, KEY), (variables["params"],), (variables["params"],))
    inner = sum(jnp.vdot(gradients[name], variables["params"][name]) for name in gradients)
    np.testing.assert_allclose(tangent, inner, rtol=1e-4)
