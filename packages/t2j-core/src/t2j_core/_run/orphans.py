"""Functions whose wrapper is gone, and which only a cache of JAX may own.

JAX keeps what it compiles for an eager `scan`, `cond` or `while_loop` in a cache of 4,096 entries that own their
programs, and jax 0.6 keeps loops of compiled programs (`_compat/jax_caches.py`).
JAX has no way to remove a single entry. So the whole cache is emptied when many functions, or large ones, have lost
their wrapper. If the user's own programs keep them, nothing is freed, and the limits are raised.
"""

from __future__ import annotations

import collections
import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any

from .. import _compat
from . import in_flight
from .nbytes_behind import nbytes_behind

_MOST = 8
_MOST_BYTES = 1 << 28

_without_wrapper: collections.deque[weakref.ref[Origin]] = collections.deque()


class Origin:
    """Owned by all functions that are derived from one, and by nothing else: it lives as long as one of them."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    @functools.cached_property
    def nbytes(self) -> int:
        """How much memory of torch's own the function keeps."""
        try:
            return nbytes_behind(self._call)
        except Exception:  # the user's objects may raise anything
            return 0


class Signatures(dict[Any, Any]):
    """The functions of one wrapper by their signatures. When the wrapper is gone, they are watched."""

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():  # the globals of modules may be gone, and the process ends anyway
            return
        _without_wrapper.extend([weakref.ref(fn.origin) for fn in self.values()])
        in_flight.release_from_finalizer()


_patience = {"count": _MOST, "bytes": _MOST_BYTES}


def release_orphans() -> None:
    """Empty JAX's cache if there are many orphans. Called before a new function is compiled."""
    if not _without_wrapper:
        return
    count, nbytes = _orphans()
    if count < _patience["count"] and nbytes < _patience["bytes"]:
        return
    _compat.forget_eager_primitives()
    count, nbytes = _orphans()
    _patience.update(count=max(_MOST, 2 * count), bytes=max(_MOST_BYTES, 2 * nbytes))


def _orphans() -> tuple[int, int]:
    """How many there are, and how many bytes they keep."""
    count = nbytes = 0
    for _ in range(len(_without_wrapper)):
        try:
            reference = _without_wrapper.popleft()
        except IndexError:  # another thread counts too
            break
        origin = reference()
        if origin is not None:
            _without_wrapper.append(reference)
            count += 1
            nbytes += origin.nbytes
    return count, nbytes
