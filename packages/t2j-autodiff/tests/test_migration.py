"""Programs written for `wrap_torch2jax` run with another import line: the single-device examples of its README.

Where they ask for a `cuda` device, this takes the CPU.
"""

from __future__ import annotations

import copy
import pickle

import jax
import numpy as np
import pytest
import torch
from jax import numpy as jnp
from t2j_autodiff import Size, dtype_t2j, torch2jax


@pytest.fixture(autouse=True)
def default_promotion():
    """These programs mix dtypes as JAX allows by default."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def on_device(*tensors):
    device = jax.devices("cpu")[0]
    return [jax.device_put(jnp.asarray(t.numpy()), device) for t in tensors]


def test_ways_to_declare_outputs():
    def torch_fn(a, b):
        return a + b

    shape = (10, 2)
    a, b = torch.randn(shape), torch.randn(shape)
    structs = [jax.ShapeDtypeStruct(t.shape, dtype_t2j(t.dtype)) for t in (a, b)]
    wrapped = [
        torch2jax(torch_fn, a, b),
        torch2jax(torch_fn, a, b, output_shapes=Size(a.shape)),
        torch2jax(torch_fn, *structs, output_shapes=jax.ShapeDtypeStruct(a.shape, dtype_t2j(a.dtype))),
    ]
    x, y = on_device(a, b)
    for jax_fn in wrapped:
        np.testing.assert_array_equal(jax_fn(x, y), a + b)
        np.testing.assert_array_equal(jax.jit(jax_fn)(x, y), a + b)
        g_fn = jax.grad(lambda a, b, f=jax_fn: jnp.sum(f(a, b)), argnums=(0, 1))
        for gradient in g_fn(x, y):
            np.testing.assert_array_equal(gradient, np.ones(shape))


def test_multiple_outputs():
    torch.manual_seed(0)
    weights = torch.nn.Linear(2, 20).state_dict()

    def torch_fn(a, b):
        layer = torch.nn.Linear(2, 20).to(a)
        layer.load_state_dict(weights)
        return a + b, torch.norm(a), layer(a * b)

    a, b = torch.randn(10, 2), torch.randn(10, 2)
    jax_fn = torch2jax(torch_fn, a, b)
    for call in (jax_fn, jax.jit(jax_fn)):
        x, y, z = call(*on_device(a, b))
        np.testing.assert_allclose(x, a + b, rtol=1e-6)
        np.testing.assert_allclose(y, torch.norm(a), rtol=1e-6)
        expected = torch.nn.functional.linear(a * b, weights["weight"], weights["bias"])
        np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-6)


def mean_squared_error(a, b):
    return torch.nn.MSELoss()(a, b)


def test_gradients_are_defined_by_default():
    xt, yt = torch.randn(6), torch.randn(6)
    jax_fn = torch2jax(mean_squared_error, xt, yt)
    g_fn = jax.grad(jax_fn, argnums=(0, 1))
    rng = np.random.default_rng(0)
    x, y = jnp.array(rng.standard_normal(6)), jnp.array(rng.standard_normal(6))
    expected = jax.grad(lambda a, b: jnp.mean((a - b) ** 2), argnums=(0, 1))(x, y)
    for g in (g_fn, jax.jit(g_fn)):
        for mine, other in zip(g(x, y), expected, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5)


def test_depth_0_is_forward_only():
    x = jnp.arange(6.0)
    assert float(torch2jax(mean_squared_error, torch.randn(6), torch.randn(6), depth=0)(x, x + 1)) == 1


def test_the_hessian_that_was_a_caveat():
    jax_fn = torch2jax(mean_squared_error, torch.randn(6), torch.randn(6))
    x, y = jnp.arange(6.0), jnp.ones(6)
    by_hessian, by_jacobians = jax.hessian(jax_fn)(x, y), jax.jacobian(jax.jacobian(jax_fn))(x, y)
    np.testing.assert_allclose(by_hessian, np.eye(6) / 3, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(by_jacobians, np.eye(6) / 3, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("error")  # new shapes need no warning
def test_changing_shapes():
    jax_fn = torch2jax(mean_squared_error, torch.randn(10), torch.randn(10))
    for n in (20, 10, 20):
        assert float(jax_fn(jnp.zeros(n), jnp.ones(n))) == 1


def test_wrapped_inside_jit():
    def torch_fn(a, b):
        return a * 2 + b

    @jax.jit
    def compute(a, b, c):
        d = torch2jax(
            torch_fn,
            jax.ShapeDtypeStruct(a.shape, dtype_t2j(a.dtype)),
            jax.ShapeDtypeStruct(b.shape, dtype_t2j(b.dtype)),
            output_shapes=jax.ShapeDtypeStruct(a.shape, dtype_t2j(a.dtype)),
        )(a, b)
        return d - c

    a, b = jnp.arange(4.0), jnp.ones(4)
    np.testing.assert_array_equal(compute(a, b, a), a + b)


@pytest.mark.parametrize(
    "options",
    [
        {"use_zeros": False},
        {"use_torch_vjp": False},
        {"vmap_method": "sequential"},
        {"nondiff_argnums": (1,)},
        {"nondiff_mask": (False, True)},
    ],
    ids=str,
)
def test_its_options(options):
    jax_fn = torch2jax(mean_squared_error, torch.randn(6), torch.randn(6), **options)
    x, y = jnp.arange(6.0), jnp.ones(6)
    gx, gy = jax.grad(jax_fn, argnums=(0, 1))(x, y)
    np.testing.assert_allclose(gx, (x - y) / 3, rtol=1e-5)
    constant = "nondiff_argnums" in options or "nondiff_mask" in options
    np.testing.assert_allclose(gy, np.zeros(6) if constant else (y - x) / 3, rtol=1e-5)
    batched = jax.vmap(jax_fn, (0, None))(jnp.stack([x, 2 * x]), y)
    np.testing.assert_allclose(batched, [jnp.mean((x - y) ** 2), jnp.mean((2 * x - y) ** 2)], rtol=1e-5)


def test_keyword_examples():
    f = torch2jax(lambda x, *, scale: (x * scale).sum(), torch.ones(3), example_kw={"scale": torch.ones(())})
    gradient = jax.grad(lambda x: f(x, scale=jnp.float32(2)))(jnp.ones(3))
    np.testing.assert_array_equal(gradient, np.full(3, 2.0))


def test_copies_keep_the_options():
    f = torch2jax(torch.sin, depth=1)
    for other in (copy.copy(f), copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert repr(other) == repr(f)
        assert jax.grad(other)(jnp.zeros(())) == 1
