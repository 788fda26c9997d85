"""Tests that need their own process: each runs a program and checks how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

PRELUDE = """
import os, signal, sys, time, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits an ignored SIGINT
import jax, jax.numpy as jnp, numpy as np, torch
from t2j_core import torch2jax, module2jax, testing
torch.set_num_threads(1)
"""


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program, with `devices` virtual CPU devices, in at most `seconds`."""

    def run_program(program: str, *, devices: int = 1, seconds: float = 240) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
            "NPROC": "64",  # calls in flight need more threads than a small machine has cores
            "JAX_PLATFORMS": "cpu",
        }
        source = PRELUDE + textwrap.dedent(program)
        return subprocess.run(
            [sys.executable, "-c", source],
            env=environment,
            timeout=seconds,
            text=True,
            capture_output=True,
            check=False,
        )

    return run_program
