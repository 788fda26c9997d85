"""Norms in second derivatives, also where the first run has met none."""

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from t2j_autodiff import torch2jax


def standard(x):
    x = x - x.mean()
    return x / jnp.sqrt((x**2).mean() + 1e-5)


def third(f):
    """Third derivatives, which torch gets wrong for its own norms."""

    def along(f, direction):
        return lambda x: jnp.sum(jax.grad(f)(x) * direction(x))

    return jax.grad(along(along(lambda x: jnp.sum(f(x) ** 3), jnp.cos), jnp.sin))


X = jnp.array([0.3, -0.2, 1.5, 0.7])


def test_a_norm_that_values_choose_is_right_in_later_runs():
    def f(x):
        return F.layer_norm(x, (4,)) if x.sum() > 0 else x**2

    got = jax.jit(third(torch2jax(f, depth=3)))
    for x in (-X, X, -X, X):
        expected = third(standard if x.sum() > 0 else jnp.square)(x)
        assert jnp.allclose(got(x), expected, rtol=1e-3, atol=1e-3)


def test_an_empty_batch_says_nothing_about_norms():
    f = torch2jax(lambda x: F.layer_norm(x, (4,)), depth=3)
    assert jax.vmap(third(f))(X[None][:0]).shape == (0, 4)
    for x in (X, 2 * X[::-1]):
        assert jnp.allclose(jax.vmap(third(f))(x[None])[0], third(standard)(x), rtol=1e-3, atol=1e-3)
        assert jnp.allclose(third(f)(x), third(standard)(x), rtol=1e-3, atol=1e-3)


def test_modes_are_left_out_where_every_run_goes_the_same_way():
    modes = []

    def f(x):
        modes.append(torch._C._len_torch_function_stack())
        return x.sin()

    second = jax.jit(jax.grad(jax.grad(torch2jax(f))))
    for _ in range(3):
        jax.block_until_ready(second(X[0]))
    assert modes[-1] == 0
