"""Whether this thread traces a function ahead of time, on tensors without data, instead of calling it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class _Thread(threading.local):
    traces = False


_thread = _Thread()


def is_traced_ahead() -> bool:
    """Whether a function is traced. What its run shows is not what a call shows."""
    return _thread.traces


@contextlib.contextmanager
def traced_ahead() -> Iterator[None]:
    """Within, a function is traced. It does not seed torch's generators: whoever runs the graph does."""
    before, _thread.traces = _thread.traces, True
    try:
        yield
    finally:
        _thread.traces = before
