"""The exceptions of torch functions on their way through XLA, which turns each into a text.

The text has a number by which whoever owns the call finds the exception again. XLA raises the error of an eager call
in the call only where the function ran on the thread of the caller. Such an exception waits in that thread's own
table, which no other exception can push it out of. All others wait in a table of a few.
"""

from __future__ import annotations

import itertools
import re
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, TypeVar

from ._bounded import remember
from ._config import config

_F = TypeVar("_F", bound=Callable[..., Any])
_TAG = re.compile(r"\[t2j error (\d+)\]")
_MOST_OF_THREAD = 16  # of eager calls that are nested, and of those whose caller has not come for it

_numbers = itertools.count(1)
_kept: dict[int, BaseException] = {}
_newest: BaseException | None = None
_eager: set[types.CodeType] = set()


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.kept: dict[int, BaseException] = {}


_own = _OfThread()


def raises_originals(function: _F) -> _F:
    """Mark a function that raises the exceptions of the torch functions that it calls as `original_of` finds them."""
    _eager.add(function.__code__)
    return function


def keep(error: BaseException) -> int:
    """Keep an exception for whoever owns the call, and for `last_error`: its number."""
    global _newest
    number = next(_numbers)
    _newest = error
    if _is_in_eager_call():
        remember(_own.kept, number, error, _MOST_OF_THREAD)
    elif config.kept_errors:
        remember(_kept, number, error, config.kept_errors)
    return number


def _is_in_eager_call() -> bool:
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code in _eager:
            return True
        frame = frame.f_back
    return False


def tag(number: int) -> str:
    """How a text says which exception it is of."""
    return f"[t2j error {number}]"


def original_of(error: BaseException) -> BaseException | None:
    """The exception of the torch function behind an error of XLA, if it is still kept. It is not kept longer."""
    # XLA's text begins with a status. The first tag is ours; what follows may quote older ones.
    text = str(error)
    found = _TAG.search(text) if re.match(r"[A-Z_]+: ", text) else None
    if found is None:
        return None
    number = int(found[1])
    table = _own.kept if number in _own.kept else _kept
    return table.pop(number, None)


def last_error() -> BaseException | None:
    """The newest exception that a torch function raised, with its type and traceback; None if there was none.

    Under your own `jax.jit` XLA turns every exception into a `JaxRuntimeError`; this has the original.

    >>> last_error() is None or isinstance(last_error(), BaseException)
    True
    """
    return _newest
