"""JAX's symbolic zeros."""

from __future__ import annotations

from typing import Any

import jax
from jax.interpreters import ad

Zero = ad.Zero


def is_zero(tangent: object) -> bool:
    """Whether a tangent or cotangent is zero symbolically."""
    return type(tangent) is Zero


def zero_tangent(primal: Any) -> Any:
    """The symbolic zero tangent of a value: float0 for integers."""
    return Zero(jax.typeof(primal).to_tangent_aval())


def zero_cotangent(primal: Any) -> Any:
    """The symbolic zero cotangent of a linear operand."""
    return Zero(primal.aval)
