"""Functions of eager programs that JAX has started and XLA has not run yet.

The program knows its function by weak reference, so the function is kept here until the program has run, in case the
caller drops it. Those that have run are released at the next eager program, and when a wrapper is dropped (not on
Python 3.11).

Python 3.11 may run the garbage collector wherever it allocates an object, and jaxlib (seen in 0.10.2) allocates frame
objects while `Traceback::Get` (`jaxlib/traceback.cc`) fills an array that its thread has once. A finalizer that the
collector runs there, and that calls `Array.is_ready()`, fills the same array, and the outer traceback then releases
code objects that it does not own: that of `_is_ready` was freed while it was in use. So finalizers do not call it.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Sequence
from typing import Any

import jax

_waiting: collections.deque[tuple[object, jax.Array]] = collections.deque()


def hold_until_ready(fn: object, results: Sequence[jax.Array]) -> None:
    """Keep `fn` alive until `results`, which one program computes, are ready."""
    if _waiting:
        release_finished()
    if results and not _is_ready(results[0]):
        _waiting.append((fn, min(results, key=lambda array: array.nbytes)))


def release_finished() -> None:
    """Release the functions that have run. It takes no lock: any thread may call it, also while another does."""
    for _ in range(len(_waiting)):
        try:
            entry = _waiting.popleft()
        except IndexError:
            return
        if not _is_ready(entry[1]):
            _waiting.append(entry)


def release_from_finalizer() -> None:
    """As `release_finished`. On Python 3.11 the next eager program does it."""
    if sys.version_info[:2] != (3, 11):
        release_finished()


def _is_ready(array: Any) -> bool:
    try:
        return bool(array.is_ready())
    except Exception:  # the array was deleted or donated: there is nothing to wait for
        return True
