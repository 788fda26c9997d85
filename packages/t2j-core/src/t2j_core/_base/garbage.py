"""The garbage collector, also while another thread runs it."""

from __future__ import annotations

import gc
import time

_TRIES, _PAUSE = 1000, 1e-3  # seconds; an upper bound, reached only when called from a finalizer


def collect(passes: int = 1) -> None:
    """Collect all garbage. A second pass collects what finalizers of the first have released.

    `gc.collect()` returns 0 at once while another thread collects (CPython: `gcstate->collecting`), so this waits for
    that thread.
    """
    for _ in range(_TRIES):
        before = _collections()
        gc.collect()
        if _collections() > before:
            passes -= 1
        if passes <= 0:
            return
        time.sleep(_PAUSE)


def _collections() -> int:
    return gc.get_stats()[-1]["collections"]
