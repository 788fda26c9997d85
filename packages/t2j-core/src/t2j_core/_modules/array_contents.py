"""What a module keeps in arrays that are not tensors."""

from __future__ import annotations

import array
import hashlib
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any] | bytearray | array.array[Any]"
_COMPARED_BYTES = 1 << 16  # of a module's arrays together; comparing them takes about 5 us


class ArrayContents:
    """The content of NumPy arrays, bytearrays and `array.array`s, to find out whether a call has written into one.

    The first arrays, up to some bytes, are compared at every check; the others at the checks 1, 2, 4, 8, ...
    """

    def __init__(self) -> None:
        self._small: list[tuple[Array, Any]] = []
        self._large: list[tuple[Array, Any]] = []
        self._alive: list[Any] = []  # what arrays of objects refer to: they are compared by address
        self._bytes = 0
        self._checks = 0

    def add(self, part: object) -> None:
        """Remember the content of `part`, if it is such an array."""
        if not isinstance(part, (np.ndarray, bytearray, array.array)):
            return
        if isinstance(part, np.ndarray):
            if not part.flags.writeable:
                return
            if part.dtype.hasobject:
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
        is_power_of_two = self._checks & (self._checks - 1) == 0
        if not self._large or not is_power_of_two:
            return False
        return any(_digest(_content(part)) != digest for part, digest in self._large)


def _content(part: Array) -> tuple[Any, ...]:
    if isinstance(part, np.ndarray):
        return part.shape, part.dtype, np.ndarray.tobytes(part)  # a masked array has a `tobytes` of its own
    return (bytes(part),)


def _digest(content: tuple[Any, ...]) -> tuple[Any, ...]:
    return *content[:-1], hashlib.blake2b(content[-1]).digest()
