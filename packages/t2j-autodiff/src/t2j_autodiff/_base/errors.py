"""Errors of differentiation."""

from __future__ import annotations

import torch
from t2j_core import T2jError, TransformError

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
"""What is raised where memory is short now, which says nothing of later calls."""


class DepthError(TransformError):
    """A derivative of a higher order than `depth` allows."""


class NonDifferentiableError(T2jError, RuntimeError):
    """A derivative that PyTorch cannot compute."""
