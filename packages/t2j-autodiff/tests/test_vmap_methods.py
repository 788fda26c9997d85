"""`vmap_method` and what goes with it, against the function in jnp."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import PerformanceWarning, torch2jax

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
    with pytest.warns(PerformanceWarning, match="(?s)cannot batch .* the 4 examples run one after another") as record:
        for _ in range(3):
            np.testing.assert_allclose(batched(X), X * X.sum(1, keepdims=True), rtol=1e-6)
    assert len(record) == 1
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
