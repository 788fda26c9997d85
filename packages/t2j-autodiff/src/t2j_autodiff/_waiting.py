"""The graphs of one function that wait for their backward, and which of them a residual stands for."""

from __future__ import annotations

from typing import Any

import torch

from . import _numbers, _tickets
from ._kept import KeptGraphs, Shelf


class Waiting:
    """The graphs of one function. Each has the `sizes` of its batch axes, and is the graph of all these examples."""

    def __init__(self, kept: KeptGraphs) -> None:
        self.kept = kept
        self.shelf = Shelf(kept)
        self.has_batches = False  # a graph of a batch has been kept
        self.mixed_batches = 0  # backwards that left graphs of batches without use, since one was used

    def take(self, residual: torch.Tensor) -> Any | None:
        """Remove the graph that a residual stands for; None if it is gone, or the residual is of no single one."""
        number = _tickets.take()
        if number != _tickets.UNKNOWN:
            return self.kept.take(self.shelf, number) if number != _tickets.NOTHING else None
        if not self.shelf or not residual.numel():
            return None
        numbers = _numbers.read(residual)
        first = int(numbers.flat[0])
        graph = self.kept.take(self.shelf, first)
        if graph is not None and _numbers.are_of(numbers, first, graph.sizes):
            self.mixed_batches = 0 if graph.sizes else self.mixed_batches
            return graph
        if not (numbers == _numbers.NOT_KEPT).all():
            self._forget([graph, *(self.kept.take(self.shelf, number) for number in self._mixed_into(numbers))])
        return None

    def _mixed_into(self, numbers: Any) -> list[int]:
        """The graphs that no backward will use, after one that got numbers of several.

        A selection between two calls for each example may have dropped all numbers of one. So no graph is left then.
        """
        if numbers.ndim:
            return list(self.shelf)
        return [first for first in list(self.shelf) if self._is_among(int(numbers), first)] if self.has_batches else []

    def _is_among(self, number: int, first: int) -> bool:
        graph = self.shelf.get(first)
        return graph is not None and bool(graph.sizes) and _numbers.is_among(number, first, graph.sizes)

    def _forget(self, graphs: list[Any]) -> None:
        self.mixed_batches += any(graph is not None and bool(graph.sizes) for graph in graphs)
