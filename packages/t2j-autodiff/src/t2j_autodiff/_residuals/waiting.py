"""The graphs of one function that wait for their backward, and which of them a residual stands for."""

from __future__ import annotations

import numpy as np
import torch

from . import example_numbers, tickets
from .kept_graph import KeptGraph
from .store import GraphStore, Shelf

_MOST_ROUNDS = 16


class Waiting:
    """The graphs of one function. Each is the graph of all examples of its batch.

    In a batch, `jax.lax.cond` selects between the numbers of two calls. If it selects only those of one, no backward
    takes the graph of the other. That graph is freed when a backward gets numbers of several calls, or after some
    rounds. In each round some graphs are kept and then some are taken.
    """

    def __init__(self, store: GraphStore) -> None:
        self.mixed_batches = 0  # backwards in a row that freed graphs of batches without using one
        self._store = store
        self._shelf = Shelf(store)
        self._has_batches = False  # a graph of a batch has been kept
        self._round = 0
        self._has_taken = False  # in this round

    def keep(self, graph: KeptGraph) -> int:
        """Keep a graph for its backward, and return its number."""
        self._has_batches |= bool(graph.axes)
        if self._has_taken and self._has_batches:
            self._has_taken = False
            self._round += 1
            self._forget_older(self._round - _MOST_ROUNDS)
        graph.round = self._round
        return self._store.keep(self._shelf, graph, graph.nbytes())

    def _forget_older(self, last_round: int) -> None:
        """Free the graphs of this round and of those before."""
        for number in list(self._shelf):  # the oldest first
            graph = self._shelf.get(number)
            if graph is not None and graph.round > last_round:
                break
            self._take(number)

    def take(self, residual: torch.Tensor) -> KeptGraph | None:
        """Remove the graph that a residual stands for; None if it is gone, or there is no single one."""
        number = tickets.take()
        if number == tickets.UNKNOWN:
            graph = self._read(residual) if self._shelf and residual.numel() else None
        else:
            graph = self._take(number) if number != tickets.NOTHING else None
        self._has_taken = True
        if self.mixed_batches and graph is not None and graph.axes:
            self.mixed_batches = 0
            self._forget_older(self._round)
        return graph

    def _take(self, number: int) -> KeptGraph | None:
        return self._store.take(self._shelf, number)

    def _read(self, residual: torch.Tensor) -> KeptGraph | None:
        numbers = example_numbers.read(residual)
        graph = self._take(int(numbers.flat[0]))
        if graph is not None and example_numbers.are_of_batch(numbers, graph.axes.sizes):
            return graph
        if not (numbers == example_numbers.NOT_KEPT).all():
            forgotten = [graph, *map(self._take, self._mixed_into(numbers))]
            self.mixed_batches += any(other is not None and bool(other.axes) for other in forgotten)
        return None

    def _mixed_into(self, numbers: np.ndarray) -> list[int]:
        """The numbers of the graphs that no backward takes any more once one has got `numbers`."""
        if numbers.ndim:
            return list(self._shelf)
        if not self._has_batches:
            return []
        return [first for first in list(self._shelf) if self._is_among(int(numbers), first)]

    def _is_among(self, number: int, first: int) -> bool:
        """Whether a number is that of an example of the batch whose graph is kept under `first`."""
        graph = self._shelf.get(first)
        return graph is not None and bool(graph.axes) and example_numbers.is_among(number, first, graph.axes.sizes)
