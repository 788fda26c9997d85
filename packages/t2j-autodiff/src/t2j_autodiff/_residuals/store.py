"""The autograd graphs that wait for a backward: by number, bounded in bytes on each device, and freed with their owner.

Without a lock: a signal handler, or a finalizer that a collection runs, may be in the middle of any of these methods
and keep or take graphs itself. Each step is one operation on a `dict`, which is atomic.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from . import example_numbers


class KeptGraphs:
    """All graphs of a process. Each lies on the shelf of its owner; this knows their numbers, and sizes by device."""

    def __init__(self) -> None:
        self._numbers = example_numbers.scattered()
        self._shelves: dict[int, weakref.ref[Shelf]] = {}  # of each graph, the oldest first
        self._nbytes: dict[Any, dict[int, int]] = {}  # on each device: of each graph, the oldest first

    def __len__(self) -> int:
        return len(self._shelves)

    def nbytes(self, device: Any) -> int:
        """How many bytes all graphs hold on a device."""
        return sum(list(self._nbytes.get(device, {}).values()))

    def values(self) -> list[Any]:
        """The graphs, the oldest first."""
        shelves = [(number, self._shelf(number)) for number in list(self._shelves)]
        return [shelf[number] for number, shelf in shelves if shelf is not None and number in shelf]

    def keep(self, shelf: Shelf, graph: Any, nbytes: Mapping[Any, int], limit: Callable[[Any], int]) -> int:
        """Keep a graph that holds `nbytes` on each device, and return its number.

        The oldest go where those on a device together exceed its `limit`.
        """
        number = next(self._numbers)
        while number in self._shelves:  # all numbers have been used meanwhile
            number = next(self._numbers)
        shelf[number] = graph
        self._shelves[number] = weakref.ref(shelf)
        for device, size in nbytes.items():
            self._nbytes.setdefault(device, {})[number] = size
        if number not in shelf:  # somebody has freed it meanwhile
            self.forget(number)
        for device in nbytes:
            self._shrink(device, limit(device))
        return number

    def take(self, shelf: Shelf, number: int) -> Any | None:
        """Remove a graph of this owner and return it; None if it is gone."""
        graph = shelf.pop(number, None)
        if graph is not None:
            self.forget(number)
        return graph

    def clear(self) -> int:
        """Free all graphs, and return how many they were."""
        return sum(self._drop(number) for number in list(self._shelves))

    def free(self, device: Any) -> int:
        """Free all graphs that hold memory of a device, and return how many they were."""
        return sum(self._drop(number) for number in list(self._nbytes.get(device, ())))

    def forget(self, number: int) -> None:
        """Remove a graph that lies on no shelf any more."""
        for sizes in list(self._nbytes.values()):
            sizes.pop(number, None)
        self._shelves.pop(number, None)

    def _shrink(self, device: Any, limit: int) -> None:
        sizes = self._nbytes[device]
        while sizes and self.nbytes(device) > limit:
            try:
                oldest = next(iter(sizes))
            except (StopIteration, RuntimeError):  # somebody else has taken it
                continue
            self._drop(oldest)

    def _shelf(self, number: int) -> Shelf | None:
        return self._shelves.get(number, lambda: None)()

    def _drop(self, number: int) -> bool:
        shelf = self._shelf(number)
        self.forget(number)
        return shelf is not None and shelf.pop(number, None) is not None


class Shelf(dict[int, Any]):
    """The graphs of one owner. They go with it: a function that is dropped frees what its pullbacks have not used."""

    def __init__(self, kept: KeptGraphs) -> None:
        super().__init__()
        self._kept = kept

    def __del__(self) -> None:
        for number in self:
            self._kept.forget(number)
