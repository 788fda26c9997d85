"""What a module keeps in memory that is no tensor's."""

from __future__ import annotations

import array
import hashlib
from typing import Any

import numpy as np

_KINDS = (np.ndarray, bytearray, array.array)
_COMPARED_BYTES = 1 << 16  # of a module's arrays together; comparing them takes about 5 us


class Memory:
    """The content of NumPy arrays, bytearrays and `array.array`s, which tells whether one has been written.

    The first arrays, up to some bytes, are compared at every check; the others at the checks 1, 2, 4, 8, ...
    """

    def __init__(self) -> None:
        self._small: list[tuple[Any, Any]] = []
        self._large: list[tuple[Any, Any]] = []
        self._alive: list[Any] = []  # what arrays of objects refer to: they are compared by address
        self._bytes = 0
        self._checks = 0

    def add(self, part: Any) -> None:
        """Remember the content of `part`, if it is of such a kind."""
        if not isinstance(part, _KINDS) or (isinstance(part, np.ndarray) and not part.flags.writeable):
            return
        if isinstance(part, np.ndarray) and part.dtype.hasobject:
            self._alive.append(part.copy())
        content = _content(part)
        self._bytes += len(content[-1])
        if self._bytes <= _COMPARED_BYTES:
            self._small.append((part, content))
        else:
            self._large.append((part, _digest(content)))

    def is_written(self) -> bool:
        """Whether the content of a part has changed."""
        if any(_content(part) != content for part, content in self._small):
            return True
        self._checks += 1
        if not self._large or self._checks & (self._checks - 1):
            return False
        return any(_digest(_content(part)) != digest for part, digest in self._large)


def _content(part: Any) -> tuple[Any, ...]:
    if isinstance(part, np.ndarray):
        return part.shape, part.dtype, np.ndarray.tobytes(part)  # a masked array has a `tobytes` of its own
    return (bytes(part),)


def _digest(content: tuple[Any, ...]) -> tuple[Any, ...]:
    return *content[:-1], hashlib.blake2b(content[-1]).digest()
