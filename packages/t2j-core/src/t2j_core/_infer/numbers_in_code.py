"""Numbers that may decide what a function does: those in the code that asked a tensor for its value."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterable, Iterator

from .._base.frames import users_frames

_MOST = 12
_LARGEST = 4096  # a number that is tried: a function may make a tensor of that size, or of its square


def numbers_in_code(error: BaseException) -> tuple[float, ...]:
    """The numbers in the code that was running when an exception was raised, those of the innermost frame first."""
    with contextlib.suppress(Exception):  # reading attributes runs the user's code
        found = (number for frame in reversed(users_frames(error)) for number in _numbers_of(frame))
        return tuple(dict.fromkeys(number for number in found if abs(number) <= _LARGEST))[:_MOST]
    return ()


def _numbers_of(frame: types.FrameType) -> Iterator[float]:
    """The numbers that a frame names: `n > 3`, `n > LIMIT`, `n > self.limit`, and those of a function `is_large(n)`."""
    code, local = frame.f_code, frame.f_locals
    yield from _numbers(code.co_consts)
    yield from _numbers(local.values())
    named = [frame.f_globals[name] for name in code.co_names if name in frame.f_globals]
    yield from _numbers(named)
    for value in (*local.values(), *named):
        if isinstance(value, types.FunctionType):
            yield from _numbers(value.__code__.co_consts)
        for holder in (getattr(value, "__dict__", {}), vars(type(value))):
            yield from _numbers(holder.get(name) for name in code.co_names)


def _numbers(values: Iterable[object]) -> Iterator[float]:
    for value in values:
        if type(value) is int or type(value) is float:
            yield value
        elif isinstance(value, (tuple, frozenset)):  # `n in (2, 4)`
            yield from (number for number in value if type(number) in (int, float))
