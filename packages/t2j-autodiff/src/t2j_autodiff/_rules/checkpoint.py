"""A policy for `jax.checkpoint`."""

from __future__ import annotations

from t2j_core.extend import torch_call_p


def checkpoint_policy(primitive: object, *_: object, **__: object) -> bool:
    """For `jax.checkpoint(f, policy=checkpoint_policy)`: keep what torch functions compute, recompute the rest.

    >>> import jax, jax.numpy as jnp, torch
    >>> from t2j_autodiff import torch2jax
    >>> f = torch2jax(torch.sin)
    >>> g = jax.checkpoint(lambda x: jnp.sum(f(2 * x)), policy=checkpoint_policy)
    >>> float(jax.grad(g)(jnp.zeros(())))
    2.0
    """
    return primitive is torch_call_p
