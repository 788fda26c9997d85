"""Forward mode of one thread, whose tangents no other thread clears.

A process has one level of forward mode. The first `torch.func.jvp` opens it (`enter_jvp_nesting` and
`_jvp_with_argnums` in torch/_functorch/eager_transforms.py), those of other threads join in, and when the first ends,
every tangent is cleared: what the others compute from then on is silently zero (torch 2.13).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from .. import _compat

_R = TypeVar("_R")

_LONGEST = 60.0  # seconds for all tries together
_POLITE = 0.1  # seconds that a `torch.func.jvp` of another thread may take before this one joins in
_PAUSE = 1e-4


class _Inside(threading.local):
    depth: int = 0  # nested runs of this thread


_inside = _Inside()


class _LostLevelError(Exception):
    """The thread that had opened the level has closed it, so the tangents are cleared."""


def in_forward_level(run: Callable[[], _R]) -> _R:
    """The result of `run`, which uses forward mode.

    If the level is free, this thread opens it, and others may join in. If another thread uses the level, this one waits
    for it. If the level stays open (a function has entered it without leaving it, or this thread was interrupted within
    it), `run` joins in, and runs again if the level was closed meanwhile.
    """
    if _compat.in_forward_mode() or _inside.depth:  # this thread is at the level already
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
def _counted() -> Iterator[None]:
    _inside.depth += 1
    _compat.count_forward_nesting(1)
    try:
        yield
    finally:
        _compat.count_forward_nesting(-1)
        _inside.depth -= 1


@contextlib.contextmanager
def _own_level() -> Iterator[None]:
    """The level, opened by this thread, and closed when all threads that joined in have left it."""
    with _counted():  # before the level opens: a signal handler that interrupts this would take it for abandoned
        _compat.open_forward_level()
        try:
            yield
            _wait(lambda: _compat.forward_nesting() == 1, _LONGEST)
        finally:
            _compat.close_forward_level()


@contextlib.contextmanager
def _level_of_others() -> Iterator[None]:
    """The level that another thread has opened. Raises if it is closed meanwhile, and a tangent made here is gone."""
    is_intact = _compat.forward_canary()
    with _counted():
        try:
            yield
        except Exception:
            if is_intact():
                raise
    if not is_intact():
        raise _LostLevelError
