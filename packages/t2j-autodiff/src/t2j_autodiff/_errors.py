"""Errors of differentiation."""

from __future__ import annotations

from t2j_core import T2jError, TransformError


class DepthError(TransformError):
    """A derivative of a higher order than `depth` allows."""


class NonDifferentiableError(T2jError, RuntimeError):
    """A derivative that PyTorch cannot compute."""
