"""Errors of differentiation."""

from __future__ import annotations

import torch
from t2j_core import T2jError, TransformError

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
"""Errors that say nothing about later calls, which may find enough memory."""


class DepthError(TransformError):
    """A derivative of a higher order than `depth` allows."""


class NonDifferentiableError(T2jError, RuntimeError):
    """A derivative that PyTorch cannot compute."""


def first_line(error: BaseException) -> str:
    """The class and the first line of an exception."""
    try:
        text = str(error)
    except Exception:  # the `__str__` of a user's class raises
        return type(error).__name__
    return f"{type(error).__name__}: {text.strip().partition(chr(10))[0][:200]}"
