"""`rng=True`: derivatives, batches and recomputation draw what the value drew."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import torch2jax

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
