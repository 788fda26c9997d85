"""Frames: which are the user's, and tracebacks without the others."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import sys
import traceback
import types
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import jax

INTERNAL = ("jax", "jaxlib", "t2j_core", "t2j_autodiff", "t2j_dist")
_FRAMEWORKS = (*INTERNAL, "torch", "contextlib", "functools")


def package_of(frame: types.FrameType) -> str:
    """The top-level package of a frame."""
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def is_users(frame: types.FrameType) -> bool:
    """Whether a frame is of the user's code, not of torch, JAX or t2j."""
    return package_of(frame) not in _FRAMEWORKS


def is_of_jax(frame: types.FrameType) -> bool:
    """Whether a frame is of JAX."""
    return package_of(frame) == "jax"


def running_finalizer() -> str | None:
    """The finalizer that Python is running in the middle of the user's function; None if there is none."""
    frame: types.FrameType | None = sys._getframe(1)
    has_met_user = False
    while frame is not None and not (has_met_user and package_of(frame) in INTERNAL):
        if frame.f_code.co_name == "__del__":
            return frame.f_code.co_qualname
        if frame.f_code is weakref.finalize.__call__.__code__:
            return "of `weakref.finalize`"
        if any(map(_is_dead_reference, _positional(frame))):
            return "of `weakref.ref`"
        has_met_user |= is_users(frame)
        frame = frame.f_back
    return None


def _positional(frame: types.FrameType) -> list[object]:
    """The positional arguments that the function of a frame was called with."""
    code = frame.f_code
    values = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount]]
    if code.co_flags & inspect.CO_VARARGS:
        rest = code.co_varnames[code.co_argcount + code.co_kwonlyargcount]
        values += frame.f_locals.get(rest, ())
    return values


def _is_dead_reference(argument: object) -> bool:
    """Whether an argument is a dead weak reference, which the callback of a `weakref.ref` is called with."""
    return issubclass(type(argument), weakref.ReferenceType) and argument() is None  # type: ignore[operator]


class Place(NamedTuple):
    """A line of the user's code."""

    filename: str
    line: int

    @property
    def text(self) -> str:
        """The code of the line, if its file can be read."""
        return linecache.getline(self.filename, self.line).strip()


def users_place(error: BaseException) -> Place | None:
    """The innermost line of the user's code in the traceback of an exception; None if there is none."""
    places = [Place(frame.f_code.co_filename, line) for frame, line in _users(error)]
    return places[-1] if places else None


def users_frames(error: BaseException) -> list[types.FrameType]:
    """The frames of the user's code in the traceback of an exception, the innermost last."""
    return [frame for frame, _ in _users(error)]


def _users(error: BaseException) -> Iterator[tuple[types.FrameType, int]]:
    return (entry for entry in traceback.walk_tb(error.__traceback__) if is_users(entry[0]))


def hide_own_frames(error: BaseException) -> None:
    """Take the frames of JAX and t2j out of the tracebacks of an exception, its causes and contexts.

    The exception that the caller is handling keeps its frames. `jax.config.jax_traceback_filtering = "off"` keeps all
    frames, as in JAX.
    """
    if jax.config.jax_traceback_filtering == "off":  # type: ignore[attr-defined]
        return
    for item in chain_of(error):
        with contextlib.suppress(Exception):  # the class of a user's exception may override `__setattr__`
            item.__traceback__ = _shortened(item.__traceback__)


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An exception, its causes and contexts, and the members of groups; without the one that the caller is handling."""
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


def _shortened(entry: types.TracebackType | None) -> types.TracebackType | None:
    """A traceback without the frames of JAX and t2j."""
    kept = []
    while entry is not None:
        if package_of(entry.tb_frame) not in INTERNAL:
            kept.append(entry)
        entry = entry.tb_next
    shortened: types.TracebackType | None = None
    for entry in reversed(kept):
        shortened = types.TracebackType(shortened, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return shortened
