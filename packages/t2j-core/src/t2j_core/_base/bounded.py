"""Tables of bounded size."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")

MOST = 1024


def remember(table: MutableMapping[_K, _V], key: _K, value: _V, most: int = MOST) -> _V:
    """Add `value` under `key`, unless the table has a value there, and return the table's. Keeps the newest `most`.

    It takes no lock: if two threads, or a function and the signal handler that interrupts it, add a value for the same
    key, both get the one that was added first.
    """
    found = table.setdefault(key, value)
    while len(table) > most:
        try:
            oldest = next(iter(table))
        except (StopIteration, RuntimeError):  # another thread has changed the table
            continue
        if oldest == key:
            break
        table.pop(oldest, None)
    return found
