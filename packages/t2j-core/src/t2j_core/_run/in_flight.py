"""Functions of eager programs that have been started but have not run yet, as XLA does with large or waiting ones.

The program knows its function by weak reference. A caller who drops the function before it has run must not notice.
Those that have run are let go of at the next eager program, and where a wrapper is dropped.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

_waiting: collections.deque[tuple[Any, Any]] = collections.deque()


def hold_until_ready(fn: Any, results: Sequence[Any]) -> None:
    """Keep `fn` alive until `results`, which one program computes, are there."""
    if _waiting:
        let_go()
    if results and not _is_ready(results[0]):
        _waiting.append((fn, min(results, key=lambda array: array.nbytes)))


def let_go() -> None:
    """Let go of the functions that have run. No lock: any thread may do it, in the middle of another's too."""
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
    except Exception:  # it was deleted or donated, which is the end of it as far as can be told
        return True
