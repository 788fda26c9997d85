"""The modes in which t2j watches functions, and what torch does within a mode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core import torch2jax

SCALED = {  # the tangent of a constant is a symbolic zero, which meets a number
    "ldexp": (lambda x: torch.ldexp(x, torch.tensor(2)), lambda x: 4 * x),
    "a constant times a number": (lambda x: x * (torch.ops.aten.mul.Scalar(x.new_ones(3), 2.5)), lambda x: 2.5 * x),
    "a constant plus a number": (lambda x: x * torch.ops.aten.add.Scalar(x.new_ones(3), 1.5), lambda x: 2.5 * x),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own forward mode uses it
@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("batched", [False, True])
def test_forward_mode_inside_a_function(name, batched):
    fn, expected = SCALED[name]

    def push(x, dx):
        one = lambda dx: torch.func.jvp(fn, (x,), (dx,))
        return torch.func.vmap(one)(torch.stack([dx, 2 * dx])) if batched else one(dx)

    x, dx = jnp.array([0.5, -1.0, 2.0]), jnp.array([1.0, 2.0, -0.5])
    one = lambda dx: jax.jvp(expected, (x,), (dx,))
    want = jax.vmap(one)(jnp.stack([dx, 2 * dx])) if batched else one(dx)
    jax.tree.map(np.testing.assert_allclose, torch2jax(push)(x, dx), want)
    jax.tree.map(np.testing.assert_allclose, jax.jit(torch2jax(push))(x, dx), want)
