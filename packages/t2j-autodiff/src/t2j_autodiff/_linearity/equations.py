"""Equations between values of a function, up to the rounding of the operations that have computed them."""

from __future__ import annotations

import math
from typing import Any

import torch
from t2j_core.extend import DispatchMode

from .._derivatives.flat_functions import Tensors

_TF32 = 2.0**-10  # relative error of matrix products on a GPU, where TF32 is allowed


class Precision(DispatchMode):
    """Notes the relative error of the least precise dtype that was computed with, as under autocast."""

    relative_error = 0.0

    def handle(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, and note the dtypes of its results."""
        result = self.operate(func, args, kwargs)
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex()):
                self.relative_error = max(self.relative_error, torch.finfo(t.dtype).eps, _TF32 if t.is_cuda else 0.0)
        return result


def are_alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two pullbacks of one cotangent are the same, to the bit on a CPU: kernels of GPUs add up in any order."""
    if a.device.type == "cpu":
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()) if a.numel() else 0.0)


def are_alike_where_finite(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same of pullbacks that are finite in the same places."""
    where = a.isfinite()
    return torch.equal(where, b.isfinite()) and are_alike(only(a, where), only(b, where))


def are_in_proportion(y: Tensors, unit: Tensors, factor: float, eps: float) -> bool:
    """Whether the values `y` are `factor` times `unit`, where both are finite. A power of two changes no rounding."""
    tolerance = min(256 * eps, math.sqrt(eps))
    for a, b in zip(y, unit, strict=True):
        b = b * factor
        difference = only(a - b, a.isfinite() & b.isfinite()).abs()
        size = only(b, b.isfinite()).abs()
        if b.numel() and float(difference.max()) > tolerance * float(size.max()):
            return False
    return True


def are_adjoint(y: Tensors, v: Tensors, grads: Tensors, point: Tensors, tolerance: float) -> bool:
    """Whether <v, y> = <grads, point>, real parts, up to `tolerance` times the size of the terms.

    `y` is the value at `point`, and `grads` is the pullback of `v`. Sums that are not finite count as equal.
    """
    left, right = ([_terms(a, b) for a, b in zip(p, q, strict=True)] for p, q in ((v, y), (grads, point)))
    size = math.sqrt(sum(float(t.square().sum()) for t in (*left, *right)))
    difference = sum(float(t.sum()) for t in left) - sum(float(t.sum()) for t in right)
    return not math.isfinite(size) or abs(difference) <= tolerance * size


def adds_up(a: torch.Tensor, b: torch.Tensor, both: torch.Tensor, tolerance: float) -> bool:
    """Whether `both` = `a` + `b` where all are finite, up to `tolerance` times the largest term."""
    where = a.isfinite() & b.isfinite() & both.isfinite()
    a, b, both = a[where], b[where], both[where]
    return not a.numel() or float((both - a - b).abs().max()) <= tolerance * float((a.abs() + b.abs()).max())


def only(a: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """`a` with zeros elsewhere."""
    return torch.where(where, a, torch.zeros_like(a))


def _terms(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.is_complex() or b.is_complex():
        return (a.to(torch.complex128) * b.to(torch.complex128)).real
    return a.to(torch.float64) * b.to(torch.float64)
