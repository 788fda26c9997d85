"""Tracebacks: which frames are the user's, and leaving out those that are not."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import sys
import traceback
import types
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

_INTERNAL = ("jax", "jaxlib", "t2j_core", "t2j_autodiff", "t2j_dist")
_FRAMEWORKS = (*_INTERNAL, "torch", "contextlib", "functools")


def _package(frame: types.FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def is_users(frame: types.FrameType) -> bool:
    """Whether a frame is neither torch's nor JAX's nor t2j's."""
    return _package(frame) not in _FRAMEWORKS


def is_of_jax(frame: types.FrameType) -> bool:
    """Whether a frame is JAX's."""
    return _package(frame) == "jax"


def running_finalizer() -> str | None:
    """The finalizer that Python runs in the middle of the user's function that runs now; None if there is none."""
    frame: types.FrameType | None = sys._getframe(1)
    has_met_user = False
    while frame is not None and not (has_met_user and _package(frame) in _INTERNAL):
        if frame.f_code.co_name == "__del__":
            return frame.f_code.co_qualname
        if frame.f_code is weakref.finalize.__call__.__code__:
            return "of `weakref.finalize`"
        if any(map(_is_called_back, _given(frame))):
            return "of `weakref.ref`"
        has_met_user |= is_users(frame)
        frame = frame.f_back
    return None


def _given(frame: types.FrameType) -> list[Any]:
    """What the function of a frame was called with, by position."""
    code = frame.f_code
    has_rest = bool(code.co_flags & inspect.CO_VARARGS)
    where = code.co_argcount + code.co_kwonlyargcount  # of the rest, which is a tuple
    values = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount]]
    return [*values, *(frame.f_locals.get(code.co_varnames[where], ()) if has_rest else ())]


def _is_called_back(given: Any) -> bool:
    """Whether it is a reference to what is gone: the callback of one, a function like any other, gets that."""
    return issubclass(type(given), weakref.ReferenceType) and given() is None


class Place(NamedTuple):
    """A line of the user's code."""

    filename: str
    line: int

    @property
    def text(self) -> str:
        """The code of the line, if its file can be read."""
        return linecache.getline(self.filename, self.line).strip()


def users_place(error: BaseException) -> Place | None:
    """The innermost line of an exception that is neither torch's nor JAX's nor t2j's; None where there is none."""
    places = [Place(frame.f_code.co_filename, line) for frame, line in _users(error)]
    return places[-1] if places else None


def users_frames(error: BaseException) -> list[types.FrameType]:
    """The frames of an exception that are neither torch's nor JAX's nor t2j's, the innermost last."""
    return [frame for frame, _ in _users(error)]


def _users(error: BaseException) -> Iterator[tuple[types.FrameType, int]]:
    return (entry for entry in traceback.walk_tb(error.__traceback__) if is_users(entry[0]))


def hide_own_frames(error: BaseException) -> None:
    """Take the frames of JAX and t2j out of the traceback of an exception, and of those behind it.

    What the caller is handling is left alone. `jax.config.jax_traceback_filtering = "off"` keeps all, as in JAX.
    """
    if jax.config.jax_traceback_filtering == "off":  # type: ignore[attr-defined]
        return
    for item in with_those_behind(error):
        with contextlib.suppress(Exception):  # a class of the user's may refuse
            item.__traceback__ = _shortened(item.__traceback__)


def with_those_behind(error: BaseException) -> Iterator[BaseException]:
    """An exception, its causes and contexts, and the members of groups; but not what the caller is handling."""
    seen = {id(sys.exception())}
    queue: list[BaseException | None] = [error]
    while queue:
        item = queue.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        queue += [item.__cause__, item.__context__]
        if isinstance(item, BaseExceptionGroup):
            queue += item.exceptions


def _shortened(found: types.TracebackType | None) -> types.TracebackType | None:
    kept = []
    while found is not None:
        if _package(found.tb_frame) not in _INTERNAL:
            kept.append(found)
        found = found.tb_next
    for entry in reversed(kept):
        found = types.TracebackType(found, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return found
