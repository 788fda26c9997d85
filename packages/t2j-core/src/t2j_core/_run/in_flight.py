"""Functions of eager programs that JAX has started and XLA has not run yet.

The program knows its function by weak reference, so the function is kept here until the program has run, in case the
caller drops it. Those that have run are released at the next eager program, and when a wrapper is dropped.
"""

from __future__ import annotations

import collections
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


def _is_ready(array: Any) -> bool:
    try:
        return bool(array.is_ready())
    except Exception:  # the array was deleted or donated: there is nothing to wait for
        return True
