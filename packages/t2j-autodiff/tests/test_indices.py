"""Gradients of gathers and scatters with the 32-bit indices of JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import torch2jax

CASES = {
    "gather": lambda x, i: x.gather(0, i[:, None].expand_as(x)),
    "scatter": lambda x, i: torch.zeros_like(x).scatter(0, i[:, None].expand_as(x), x),
    "scatter_add": lambda x, i: torch.zeros_like(x).scatter_add(0, i[:, None].expand_as(x), x),
    "scatter_reduce": lambda x, i: torch.zeros_like(x).scatter_reduce(0, i[:, None].expand_as(x), x, "amax"),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("residuals", ["auto", "recompute"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_64_bit_indices(name, residuals):
    f = CASES[name]
    for rows, columns in ((4, 6), (64, 32)):
        x = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
        i = np.random.default_rng(1).permutation(rows).astype(np.int32)
        t = torch.tensor(x, requires_grad=True)
        f(t, torch.tensor(i).long()).square().sum().backward()
        g = jax.grad(lambda x, i: (torch2jax(f, residuals=residuals)(x, i) ** 2).sum())
        np.testing.assert_allclose(jax.jit(g)(x, i), t.grad.numpy(), rtol=1e-5)
        several = jax.vmap(g)(jnp.stack([x, 2 * x]), jnp.stack([i, i]))
        np.testing.assert_allclose(several[0], t.grad.numpy(), rtol=1e-5)
