"""A function whose runs are counted, for tests of how often a forward runs."""

from __future__ import annotations

import jax.numpy as jnp
import torch


class Counted:
    """A torch function that counts its runs on data."""

    def __init__(self):
        self.runs = 0

    def __call__(self, x):
        self.runs += not x.is_meta
        return torch.tanh(x).exp().sum()


def in_jnp(x):
    """The same in JAX."""
    return jnp.exp(jnp.tanh(x)).sum()
