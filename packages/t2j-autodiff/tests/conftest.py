"""JAX at its strictest, torch on one thread, everything on the CPU unless JAX_PLATFORMS says otherwise."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import jax.experimental
import jax.export
import pytest
import torch

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
torch.set_num_threads(1)

# Compiling takes what it takes, so no deadline; the same examples at every run, so that a failure is everybody's.
hypothesis.settings.register_profile("t2j", deadline=None, derandomize=True, database=None, max_examples=25)
hypothesis.settings.load_profile("t2j")

if not hasattr(jax, "enable_x64"):  # jax before 0.8
    jax.enable_x64 = jax.experimental.enable_x64


@pytest.fixture(scope="module")
def frozen():
    """Garbage is looked for in what the tests make, not in all that was imported: that takes most of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
