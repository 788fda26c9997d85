"""JAX at its strictest on 8 virtual devices, torch on one thread."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "64")  # XLA's threads: a collective needs one for each device of each step in flight
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.experimental
import jax.export
import torch

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
torch.set_num_threads(1)

if not hasattr(jax, "enable_x64"):  # jax before 0.8
    jax.enable_x64 = jax.experimental.enable_x64
