"""The autograd graphs that wait for a backward: by number, bounded in bytes on each device, and freed with their owner.

There is no lock: a signal handler, or a finalizer that a garbage collection runs, may interrupt any of these methods
and keep or take graphs itself. Each step is one operation on a `dict`, which is atomic.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping

import torch

from .._base.config import residual_limit
from . import example_numbers
from .kept_graph import KeptGraph


class GraphStore:
    """Graphs of many owners. Each lies on the shelf of its owner; the store knows their numbers and sizes.

    `limit` is how many bytes all graphs together may hold on a device.
    """

    def __init__(self, limit: Callable[[torch.device], int], numbers: Iterator[int] | None = None) -> None:
        self.limit = limit
        self._numbers = numbers or example_numbers.scattered()
        self._shelves: dict[int, weakref.ref[Shelf]] = {}  # by number, the oldest first
        self._nbytes: dict[torch.device, dict[int, int]] = {}  # by device and number, the oldest first

    def __len__(self) -> int:
        return len(self._shelves)

    def nbytes(self, device: torch.device) -> int:
        """How many bytes all graphs hold on a device."""
        return sum(list(self._nbytes.get(device, {}).values()))

    def values(self) -> list[KeptGraph]:
        """The graphs, the oldest first."""
        shelves = [(number, self._shelf(number)) for number in list(self._shelves)]
        return [shelf[number] for number, shelf in shelves if shelf is not None and number in shelf]

    def keep(self, shelf: Shelf, graph: KeptGraph, nbytes: Mapping[torch.device, int]) -> int:
        """Keep a graph that holds `nbytes` on each device, and return its number.

        The oldest are freed where all on a device exceed its limit.
        """
        number = next(self._numbers)
        while number in self._shelves:  # all numbers have been used meanwhile
            number = next(self._numbers)
        shelf[number] = graph
        self._shelves[number] = shelf.ref
        for device, size in nbytes.items():
            self._nbytes.setdefault(device, {})[number] = size
        if number not in shelf:  # something has freed it meanwhile
            self.forget(number)
        for device in nbytes:
            self._shrink(device, self.limit(device))
        return number

    def take(self, shelf: Shelf, number: int) -> KeptGraph | None:
        """Remove a graph of this owner and return it; None if it is gone."""
        graph = shelf.pop(number, None)
        if graph is not None:
            self.forget(number)
        return graph

    def clear(self) -> int:
        """Free all graphs, and return how many there were."""
        return sum(self._drop(number) for number in list(self._shelves))

    def free(self, device: torch.device) -> int:
        """Free all graphs that hold memory of a device, and return how many there were."""
        return sum(self._drop(number) for number in list(self._nbytes.get(device, ())))

    def forget(self, number: int) -> None:
        """Remove a graph that no longer lies on a shelf."""
        for sizes in list(self._nbytes.values()):
            sizes.pop(number, None)
        self._shelves.pop(number, None)

    def _shrink(self, device: torch.device, limit: int) -> None:
        sizes = self._nbytes[device]
        while sizes and self.nbytes(device) > limit:
            try:
                oldest = next(iter(sizes))
            except (StopIteration, RuntimeError):  # something else has taken it
                continue
            self._drop(oldest)

    def _shelf(self, number: int) -> Shelf | None:
        return self._shelves.get(number, lambda: None)()

    def _drop(self, number: int) -> bool:
        shelf = self._shelf(number)
        self.forget(number)
        return shelf is not None and shelf.pop(number, None) is not None


class Shelf(dict[int, KeptGraph]):
    """The graphs of one owner, by number. A function that is dropped frees what its pullbacks have not used."""

    def __init__(self, store: GraphStore) -> None:
        super().__init__()
        self._store = store
        self.ref: weakref.ref[Shelf] = weakref.ref(self)

    def __del__(self) -> None:
        for number in self:
            self._store.forget(number)


kept_graphs = GraphStore(residual_limit)
"""All graphs of the process that wait for a backward."""


def clear_residuals() -> int:
    """Free the autograd graphs that wait for a backward, and return how many there were.

    Only a backward that never comes leaves one, such as that of a `jax.vjp` whose pullback is not called. Backwards
    that come after all run the forward again.

    >>> clear_residuals() >= 0
    True
    """
    return kept_graphs.clear()
