"""Runs for inference show no warnings of the function: they concern made-up values, or tensors without data."""

from __future__ import annotations

import contextlib
import threading
import types
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, warnings of this thread are ignored; the calls themselves will show them.

    `warnings.catch_warnings` would replace the filters of all threads, and if two threads do so at the same time, may
    leave the wrong ones. A filter that another thread has copied meanwhile matches nothing any more.
    """
    thread: int | None = threading.get_ident()
    text = types.SimpleNamespace(match=lambda _: threading.get_ident() == thread)  # as a compiled regular expression
    own = ("ignore", text, Warning, None, 0)
    filters = warnings.filters
    filters.insert(0, own)  # type: ignore[attr-defined]  # typeshed declares a Sequence
    try:
        yield
    finally:
        thread = None
        with contextlib.suppress(ValueError):  # somebody has reset the filters
            filters.remove(own)  # type: ignore[attr-defined]
