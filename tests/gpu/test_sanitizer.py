"""Calls under compute-sanitizer. This takes minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

# Host backtraces keep the Python frames that called CUDA, and with them the arguments that t2j has lent.
QUIET = ("--show-backtrace", "device", "--report-api-errors", "no", "--error-exitcode", "1")


def test_clean_under_compute_sanitizer(tmp_path, gpu):
    checker = shutil.which("compute-sanitizer")
    if checker is None:
        pytest.skip("needs compute-sanitizer")
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import jax, jax.numpy as jnp, torch
        from t2j_autodiff import torch2jax
        f = torch2jax(lambda x, w: torch.tanh(x @ w).sum())
        x, w = jnp.ones((64, 64)), jnp.ones((64, 64))
        for _ in range(3):
            jax.block_until_ready(jax.jit(jax.value_and_grad(f))(x, w))
            jax.block_until_ready(jax.jit(torch2jax(torch.sin, outputs="auto"))(jnp.ones(1 << 20)))
        """)
    )
    every_allocation_apart = {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        [checker, *QUIET, sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=Path(__file__).parent,
        env={**os.environ, **every_allocation_apart, "XLA_FLAGS": "--xla_gpu_autotune_level=0"},
    )
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer does not support this device here")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "ERROR SUMMARY: 0 errors" in done.stdout
