"""Batch axes: how many examples, and which operands have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from t2j_core.extend import (
    Leaf,
)

from .._derivatives.reverse_mode import Flat

Dims = tuple[int | None, ...]  # per operand: 0, or None where it is the same for all examples
Levels = tuple[tuple[int, Dims], ...]
"""Batch axes, innermost first: how many examples, and which operands have the axis."""


def with_levels(leaf: Leaf, index: int, levels: Levels) -> Leaf:
    """The leaf of an operand with its batch axes."""
    sizes = tuple(size for size, dims in reversed(levels) if dims[index] is not None)
    return replace(leaf, shape=(*sizes, *leaf.shape)) if sizes else leaf


def with_all_levels(leaf: Leaf, levels: Levels) -> Leaf:
    """The leaf of a result, which has every batch axis."""
    sizes = tuple(size for size, _ in reversed(levels))
    return replace(leaf, shape=(*sizes, *leaf.shape)) if sizes else leaf


def with_batch_axes(t: torch.Tensor, index: int, levels: Levels, *, expand: bool = True) -> torch.Tensor:
    """An operand with all batch axes in front, outermost first; those it did not have are of size 1 unless `expand`."""
    for position, (size, dims) in enumerate(reversed(levels)):
        if dims[index] is None:
            t = t.unsqueeze(position)
            t = t.expand(*t.shape[:position], size, *t.shape[position + 1 :]) if expand else t
    return t


class LeadingAxes:
    """A function that takes its batch axes itself, in front of its own."""

    def __init__(self, f: Flat, levels: Levels, results: Sequence[Leaf], *, expand: bool) -> None:
        self.f = f
        self.levels = levels
        self.results = results
        self.expand = expand

    def __call__(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes = tuple(size for size, _ in reversed(self.levels))
        if 0 in sizes:
            return zeros_of(self.results, sizes, x[0].device)
        n = len(sizes)
        rows = (with_batch_axes(t, i, self.levels, expand=self.expand) for i, t in enumerate(x))
        fits = lambda y: y.dim() >= n and all(have in (1, size) for have, size in zip(y.shape, sizes, strict=False))
        return tuple(y.expand(*sizes, *y.shape[n:]) if fits(y) else y for y in self.f(*rows))

    def over(self, size: int, dims: Dims) -> LeadingAxes:
        """The function with one more batch axis, outside the others."""
        return LeadingAxes(self.f, (*self.levels, (size, dims)), self.results, expand=self.expand)


def zeros_of(results: Sequence[Leaf], sizes: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """The results of a batch without examples."""
    return tuple(torch.zeros((*sizes, *leaf.shape), dtype=leaf.torch_dtype, device=device) for leaf in results)
