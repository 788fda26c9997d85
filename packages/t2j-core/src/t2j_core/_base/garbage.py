"""The garbage collector, also while another thread runs it."""

from __future__ import annotations

import gc
import time

_TRIES, _PAUSE = 1000, 1e-3  # seconds; an upper bound, reached only when called from a finalizer


def collect(passes: int = 1) -> None:
    """Collect all garbage; the second of two passes also takes what finalizers of the first let go.

    `gc.collect()` does nothing and says nothing while another thread collects: such a thread is waited for.
    """
    for _ in range(_TRIES):
        before = _collections()
        gc.collect()
        passes -= _collections() > before
        if passes <= 0:
            return
        time.sleep(_PAUSE)


def _collections() -> int:
    return gc.get_stats()[-1]["collections"]
