"""The graphs of one function that wait for their backward, and which of them a residual stands for."""

from __future__ import annotations

from typing import Any

import torch

from . import example_numbers, tickets
from .store import KeptGraphs, Shelf

_MOST_ROUNDS = 16


class Waiting:
    """The graphs of one function. Each has the `sizes` of its batch axes, and is the graph of all these examples.

    A batched selection between two calls may pass on the numbers of one alone. The graph of the other waits in vain. It
    goes when a backward gets numbers of several calls, or after some rounds, in which graphs were kept and taken.
    """

    def __init__(self, kept: KeptGraphs) -> None:
        self.kept = kept
        self.shelf = Shelf(kept)
        self.has_batches = False  # a graph of a batch has been kept
        self.mixed_batches = 0  # backwards that left graphs of batches without use, since one was used
        self._round = 0
        self._has_taken = False  # in this round

    def note(self, graph: Any) -> None:
        """Note a graph that is about to be kept."""
        self.has_batches |= bool(graph.sizes)
        if self._has_taken and self.has_batches:
            self._has_taken = False
            self._round += 1
            self._forget_older(self._round - _MOST_ROUNDS)
        graph.round = self._round

    def _forget_older(self, round: int) -> None:
        for number in list(self.shelf):  # the oldest first
            graph = self.shelf.get(number)
            if graph is not None and graph.round > round:
                break
            self.kept.take(self.shelf, number)

    def take(self, residual: torch.Tensor) -> Any | None:
        """Remove the graph that a residual stands for; None if it is gone, or the residual is of no single one."""
        number = tickets.take()
        if number == tickets.UNKNOWN:
            graph = self._read(residual) if self.shelf and residual.numel() else None
        else:
            graph = self.kept.take(self.shelf, number) if number != tickets.NOTHING else None
        self._has_taken = True
        if self.mixed_batches and graph is not None and graph.sizes:
            self.mixed_batches = 0
            self._forget_older(self._round)
        return graph

    def _read(self, residual: torch.Tensor) -> Any | None:
        numbers = example_numbers.read(residual)
        graph = self.kept.take(self.shelf, int(numbers.flat[0]))
        if graph is not None and example_numbers.are_of_batch(numbers, graph.sizes):
            return graph
        if not (numbers == example_numbers.NOT_KEPT).all():
            forgotten = [graph, *(self.kept.take(self.shelf, number) for number in self._mixed_into(numbers))]
            self.mixed_batches += any(other is not None and bool(other.sizes) for other in forgotten)
        return None

    def _mixed_into(self, numbers: Any) -> list[int]:
        """The graphs that are not waited for any more after a backward that got these numbers."""
        if numbers.ndim:
            return list(self.shelf)
        return [first for first in list(self.shelf) if self._is_among(int(numbers), first)] if self.has_batches else []

    def _is_among(self, number: int, first: int) -> bool:
        graph = self.shelf.get(first)
        return graph is not None and bool(graph.sizes) and example_numbers.is_among(number, first, graph.sizes)
