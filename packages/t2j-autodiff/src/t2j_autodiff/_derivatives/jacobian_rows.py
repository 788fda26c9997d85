"""Tangents from rows of the Jacobian, each of which takes one pullback."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .flat_functions import Tensors

ROWS = 256
"""How many rows of the Jacobian the results of one call may have in all."""


def n_rows(results: Tensors) -> int:
    """How many rows the results have: two per complex number."""
    return sum(y.numel() * (1 + y.is_complex()) for y in results)


def tangent_from_rows(
    y: torch.Tensor, pullback: Callable[[torch.Tensor], Sequence[torch.Tensor | None]], tangents: Tensors
) -> torch.Tensor:
    """The tangent of the result `y`, from the pullback of its cotangents and the `tangents` of the operands.

    For complex numbers, sum(g t) = sum(r dy) holds for the real parts alone, so each has two rows.
    """

    def product(j: int, weight: complex) -> torch.Tensor:
        ct = torch.zeros(y.numel(), dtype=y.dtype, device=y.device)
        ct[j] = weight  # type: ignore[assignment]  # torch's annotation lacks complex numbers
        terms = [(g * t).sum() for g, t in zip(pullback(ct.view(y.shape)), tangents, strict=True) if g is not None]
        products = [t.real if t.is_complex() else t for t in terms]
        return sum(products, torch.zeros((), dtype=_real_dtype(ct), device=ct.device))

    dy = torch.zeros(y.numel(), dtype=y.dtype, device=y.device)
    for j in range(y.numel()):
        real = product(j, 1)
        dy[j] = torch.complex(real, product(j, -1j)) if y.is_complex() else real
    return dy.view(y.shape)


def _real_dtype(t: torch.Tensor) -> torch.dtype:
    return t.dtype.to_real() if t.is_complex() else t.dtype
