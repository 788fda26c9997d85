"""The tests of this folder need a CUDA build of torch over the fake runtime, which `nox -s cuda_fake` makes."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
import torch
from t2j_autodiff import clear_residuals
from t2j_core.testing import assert_nothing_escaped

from . import runtime

if runtime.library() is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _a_runtime_as_new():
    """Torch uses both devices, the log is empty, nothing is out of order, and at the end nothing has escaped."""
    torch.cuda.init()
    for device in range(2):
        torch.empty(1, device=f"cuda:{device}")
    clear_residuals()
    runtime.take()
    yield
    clear_residuals()
    assert_nothing_escaped()
    assert torch.cuda.current_device() == 0
    assert torch.cuda.current_stream(0).cuda_stream == torch.cuda.current_stream(1).cuda_stream == 0
    runtime.compares_as(True)
