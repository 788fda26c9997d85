"""Torch's one level of forward mode, which all threads of a process share.

The first `torch.func.jvp` opens it, those of other threads join in, and when the first ends every tangent is gone: what
the others compute from then on is zero, without an error.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from .. import _compat

_R = TypeVar("_R")

_LONGEST = 60.0  # seconds for all of it
_POLITE = 0.1  # how long somebody else's `torch.func.jvp` may take before this one joins in
_PAUSE = 1e-4


class _Inside(threading.local):
    depth: int = 0  # how many runs of this thread are nested in each other


_inside = _Inside()


class _LostLevelError(Exception):
    """Whoever had opened the level has closed it, so the tangents are gone."""


def in_forward_level(run: Callable[[], _R]) -> _R:
    """The result of `run`, which uses forward mode, with tangents that nobody takes away.

    Where nobody uses the level it is opened for `run` alone, and other threads may join in. Where another thread uses
    it, it is waited for. Where it stays open (a function has entered it without leaving it, or this thread was
    interrupted within), `run` joins in, and runs again if the level was closed meanwhile.
    """
    if _compat.in_forward_mode() or _inside.depth:  # this thread has the level
        return run()
    end = time.monotonic() + _LONGEST
    patience = _POLITE if _compat.forward_nesting() else _PAUSE
    while True:
        is_free = _wait(_is_free, min(patience, end - time.monotonic()))
        try:
            with _own_level() if is_free else _level_of_others():
                return run()
        except _LostLevelError:
            if time.monotonic() > end:
                raise RuntimeError(
                    f"Another thread has opened and closed PyTorch's forward mode (`torch.autograd.forward_ad`) for "
                    f"{_LONGEST:g} s, and PyTorch allows one thread at a time."
                ) from None
        patience = min(2 * max(patience, _PAUSE), _LONGEST)


def _is_free() -> bool:
    return _compat.forward_nesting() == 0 and not _compat.forward_level_is_open()


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (reached := condition()) and time.monotonic() < end:
        time.sleep(_PAUSE)
    return reached


@contextlib.contextmanager
def _marked() -> Iterator[None]:
    _inside.depth += 1
    _compat.count_forward_nesting(1)
    try:
        yield
    finally:
        _compat.count_forward_nesting(-1)
        _inside.depth -= 1


@contextlib.contextmanager
def _own_level() -> Iterator[None]:
    """A level that is closed when everybody who joined in is out again."""
    with _marked():  # first, so that nobody who interrupts this takes the level for an abandoned one
        _compat.open_forward_level()
        try:
            yield
            _wait(lambda: _compat.forward_nesting() == 1, _LONGEST)
        finally:
            _compat.close_forward_level()


@contextlib.contextmanager
def _level_of_others() -> Iterator[None]:
    """The level that is open, with an error if it is closed meanwhile: a tangent of its own tells."""
    is_intact = _compat.forward_canary()
    with _marked():
        try:
            yield
        except Exception:
            if is_intact():
                raise
    if not is_intact():
        raise _LostLevelError
