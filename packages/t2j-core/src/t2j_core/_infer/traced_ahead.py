"""Whether this thread traces a function ahead of time, on tensors without data, instead of calling it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class _Thread(threading.local):
    traces = False
    looks_at_keys = True


_thread = _Thread()


def is_traced_ahead() -> bool:
    """Whether a function is traced. What its run shows is not what a call shows."""
    return _thread.traces


def looks_at_keys() -> bool:
    """Whether a function seeds torch's generators from its key."""
    return _thread.looks_at_keys


@contextlib.contextmanager
def traced_ahead(*, looks_at_keys: bool) -> Iterator[None]:
    """Within, a function is traced."""
    before = _thread.traces, _thread.looks_at_keys
    _thread.traces, _thread.looks_at_keys = True, looks_at_keys
    try:
        yield
    finally:
        _thread.traces, _thread.looks_at_keys = before
