"""Batch axes: how many examples each has, and which operands have it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import torch
from t2j_core.extend import Leaf

Dims = tuple[int | None, ...]
"""For each operand 0, the place of its batch axis, or None where it is the same for all examples."""


class BatchAxis(NamedTuple):
    """One batch axis, and which operands have it. Results always have it."""

    size: int
    dims: Dims

    def has(self, operand: int) -> bool:
        """Whether an operand has the axis."""
        return self.dims[operand] is not None


class BatchAxes(tuple[BatchAxis, ...]):
    """All batch axes, outermost first: the order in which they lie in front of the axes of an example.

    >>> axes = NO_AXES.within(3, (0, None)).within(2, (0, 0))
    >>> axes.sizes, [axis.has(1) for axis in axes]
    ((2, 3), [True, False])
    """

    __slots__ = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many examples each axis has."""
        return tuple(axis.size for axis in self)

    def within(self, size: int, dims: Dims) -> BatchAxes:
        """These axes inside one more, which becomes the outermost."""
        return BatchAxes((BatchAxis(size, dims), *self))

    @property
    def inner(self) -> BatchAxes:
        """All but the outermost."""
        return BatchAxes(self[1:])

    # --- for other operands ----------------------------------------------------------------------------------------

    def of_first(self, n: int) -> BatchAxes:
        """The axes for the first `n` operands."""
        return BatchAxes(BatchAxis(size, dims[:n]) for size, dims in self)

    def with_full(self, k: int) -> BatchAxes:
        """The axes for `k` operands more, which have all of them."""
        return BatchAxes(BatchAxis(size, (*dims, *(0,) * k)) for size, dims in self)

    def filled(self, operands: Collection[int]) -> BatchAxes:
        """The axes where some operands have all of them."""
        return BatchAxes(
            BatchAxis(size, tuple(0 if i in operands else d for i, d in enumerate(dims))) for size, dims in self
        )

    # --- leaves and tensors ----------------------------------------------------------------------------------------

    def of_operand(self, leaf: Leaf, operand: int) -> Leaf:
        """The leaf of an operand with the batch axes that it has."""
        sizes = tuple(axis.size for axis in self if axis.has(operand))
        return replace(leaf, shape=(*sizes, *leaf.shape)) if sizes else leaf

    def of_result(self, leaf: Leaf) -> Leaf:
        """The leaf of a result with every batch axis."""
        return replace(leaf, shape=(*self.sizes, *leaf.shape)) if self else leaf

    def expanded(self, t: torch.Tensor, operand: int) -> torch.Tensor:
        """An operand with every batch axis: along those that it lacks, it is expanded."""
        if all(axis.has(operand) for axis in self):
            return t
        t = self.unsqueezed(t, operand)
        return t.expand(*self.sizes, *t.shape[len(self) :])

    def unsqueezed(self, t: torch.Tensor, operand: int) -> torch.Tensor:
        """An operand with every batch axis: those that it lacks are of size 1."""
        for position, axis in enumerate(self):
            if not axis.has(operand):
                t = t.unsqueeze(position)
        return t


NO_AXES = BatchAxes()
"""One example."""
