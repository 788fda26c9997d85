"""Tables that do not grow for ever."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")

MOST = 1024


def remember(table: MutableMapping[_K, _V], key: _K, value: _V, most: int = MOST) -> _V:
    """The value of `key` in a table: the one that is there, else `value`. The oldest go beyond `most`.

    No lock: where two threads, or a function and the signal handler that interrupts it, make the same value, both get
    the one that was there first.
    """
    found = table.setdefault(key, value)
    while len(table) > most:
        try:
            oldest = next(iter(table))
        except (StopIteration, RuntimeError):  # somebody else has removed it
            continue
        if oldest == key:
            break
        table.pop(oldest, None)
    return found
