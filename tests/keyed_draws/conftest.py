"""On the CPU, keys draw from the reference sampler as they do on a GPU from the kernel."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import philox_reference
import pytest
import torch
from t2j_core._random import sampler
from t2j_core.extend import DispatchMode
from torch.utils._python_dispatch import _disable_current_modes


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Draw from the reference; the list has each tensor of numbers that was drawn."""
    if not DispatchMode.compiler_works_inside:
        pytest.skip("keys are read on the host before torch 2.10")
    log: list[torch.Tensor] = []

    def fill(out, key, position, distribution):
        with _disable_current_modes():  # no mode sees what a kernel of Triton does
            philox_reference.fill(out, key, position, distribution)
        log.append(out)

    monkeypatch.setitem(sampler.samplers, "cpu", lambda: fill)
    jax.clear_caches()
    return log
