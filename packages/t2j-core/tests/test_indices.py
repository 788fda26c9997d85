"""Gathers and scatters with the 32-bit indices of JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core import torch2jax

X = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
WIDE = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
INDEX = np.array([2, 0, 3, 3], np.int32)
WIDE_INDEX = np.random.default_rng(2).integers(0, 4, 64).astype(np.int32)

FUNCTIONS = {
    "gather": lambda x, i: x.gather(0, i[:, None].expand(len(i), x.shape[1])),
    "torch.gather": lambda x, i: torch.gather(x, dim=0, index=i[:, None].expand(-1, x.shape[1])),
    "three axes": lambda x, i: x[:, :, None].contiguous().gather(0, i[:, None, None].expand(-1, x.shape[1], 1)),
    "bfloat16": lambda x, i: x.bfloat16().gather(0, i[:, None].expand(len(i), x.shape[1])).float(),
    "int32 data": lambda x, i: x.int().gather(0, i[:, None].expand(len(i), x.shape[1])),
    "scatter_add": lambda x, i: torch.zeros(4, x.shape[1]).scatter_add(0, i[:, None].expand_as(x), x),
    "scatter_add_": lambda x, i: torch.zeros(4, x.shape[1]).scatter_add_(0, i[:, None].expand_as(x), x),
    "scatter_reduce": lambda x, i: torch.zeros(4, x.shape[1]).scatter_reduce(0, i[:, None].expand_as(x), x, "amax"),
}


def in_int64(f, x, i):
    return f(torch.tensor(x), torch.tensor(i, dtype=torch.int64)).numpy()


@pytest.mark.parametrize("declared", [False, True], ids=["inferred", "declared"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_expanded_index(name, declared):
    f = FUNCTIONS[name]
    for x, i in ((X, INDEX), (WIDE, WIDE_INDEX)):
        want = in_int64(f, x, i)
        g = torch2jax(f, output_shapes=jax.ShapeDtypeStruct(want.shape, want.dtype) if declared else None)
        for call in (g, jax.jit(g)):
            y = call(jnp.asarray(x), jnp.asarray(i))
            np.testing.assert_allclose(np.asarray(y), want, rtol=1e-6)
            assert y.dtype == want.dtype


def test_a_function_without_such_an_index_runs_as_it_is():
    modes = []

    def f(x, i):
        modes.append(torch._C._len_torch_function_stack())
        return x.gather(0, i)

    x, i = jnp.asarray(X[:, 0]), jnp.asarray(INDEX)
    np.testing.assert_array_equal(torch2jax(f)(x, i), X[INDEX, 0])
    assert modes[-1] == 0
