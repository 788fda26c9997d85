"""JAX's symbolic zeros."""

from __future__ import annotations

from typing import Protocol

import jax
from jax.interpreters import ad

Zero = ad.Zero


class _HasAval(Protocol):
    """A value of JAX, or the `UndefinedPrimal` of one."""

    aval: jax.core.AbstractValue


def is_zero(tangent: object) -> bool:
    """Whether a tangent or cotangent is a symbolic zero."""
    return type(tangent) is Zero


def zero_tangent(primal: object) -> ad.Zero:
    """The symbolic zero tangent of a primal: of dtype float0 for integers."""
    return Zero(jax.typeof(primal).to_tangent_aval())


def zero_cotangent(primal: _HasAval) -> ad.Zero:
    """The symbolic zero cotangent of a linear operand."""
    return Zero(primal.aval)
