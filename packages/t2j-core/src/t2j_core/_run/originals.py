"""The exceptions of torch functions, which XLA turns into texts.

The text has a number by which the owner of the call finds the exception again. An eager call raises only what was
raised on the caller's thread. Such exceptions are kept in a table of that thread, so that those of other threads cannot
displace them. All others are kept in a small table.

On a CPU, an eager call raises XLA's error itself. On a GPU, waiting for a result raises it: `raise_late` waits.
"""

from __future__ import annotations

import itertools
import re
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from .._base.bounded import remember
from .._base.config import config
from .._base.frames import is_of_jax, is_users

_F = TypeVar("_F", bound=Callable[..., Any])
_TAG = re.compile(r"\[t2j error (\d+)\]")
_MOST_OF_THREAD = 16  # enough for nested eager calls, and for exceptions that are never fetched

_numbers = itertools.count(1)
_kept: dict[int, BaseException] = {}
_newest: BaseException | None = None
_eager: set[types.CodeType] = set()


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.kept: dict[int, BaseException] = {}
        self.newest = 0  # the number of the last one that was kept here
        self.depth = 0  # how many calls of this thread were inside of each other when it was raised


of_thread = _OfThread()


def raises_originals(function: _F) -> _F:
    """Mark a function that raises what `original_of` returns, in place of XLA's errors."""
    _eager.add(function.__code__)
    return function


def keep(error: BaseException, depth: int = 1) -> int:
    """Keep an exception for the owner of the call and for `last_error`. Returns its number."""
    global _newest
    number = next(_numbers)
    _newest = error
    if _is_in_eager_call():
        remember(of_thread.kept, number, error, _MOST_OF_THREAD)
        of_thread.newest, of_thread.depth = number, depth
    elif config.kept_errors:
        remember(_kept, number, error, config.kept_errors)
    return number


def _is_in_eager_call() -> bool:
    """Whether an eager call has failed, not a program that the user's code runs inside of one (as in a `flatten`)."""
    frame: types.FrameType | None = sys._getframe()
    has_met_user = False
    while frame is not None and not (has_met_user and is_of_jax(frame)):
        if frame.f_code in _eager:
            return True
        has_met_user |= is_users(frame)
        frame = frame.f_back
    return False


def tag(number: int) -> str:
    """The part of a text that has the number of its exception."""
    return f"[t2j error {number}]"


def original_of(error: BaseException) -> BaseException | None:
    """The exception of the torch function behind an error of XLA, if it is still kept. Removes it from the table."""
    # XLA's text begins with a status. The first tag counts: the text may quote those of nested calls.
    text = str(error)
    found = _TAG.search(text) if re.match(r"[A-Z_]+: ", text) else None
    if found is None:
        return None
    number = int(found[1])
    table = of_thread.kept if number in of_thread.kept else _kept
    return table.pop(number, None)


def raise_late(results: object) -> None:
    """Raise the error of an eager call that returned although its function raised (`of_thread.newest` has changed)."""
    jax.block_until_ready(results)
    if not jax.tree.leaves(results):  # nothing to wait for
        error = of_thread.kept.pop(of_thread.newest, None)
        if error is not None:
            raise error


def last_error() -> BaseException | None:
    """The newest exception that a torch function raised, with its type and traceback; None if there was none.

    Under your own `jax.jit` XLA turns every exception into a `JaxRuntimeError`; this has the original.

    >>> last_error() is None or isinstance(last_error(), BaseException)
    True
    """
    return _newest
