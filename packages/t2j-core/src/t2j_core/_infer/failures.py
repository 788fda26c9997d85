"""Exceptions of runs that infer outputs: what they have in common, and whether real data might avoid them."""

from __future__ import annotations

from collections.abc import Sequence

from .._base.frames import Place, users_place

FailureKind = tuple[type[Exception], Place | None]


def kind_of(error: Exception) -> FailureKind:
    """The class of an exception, and where the function raised it. Unlike the exception it refers to no frame."""
    return type(error), users_place(error)


def values_matter(without_data: FailureKind | None, with_data: Sequence[Exception]) -> bool:
    """Whether a function that failed without data, and on made-up data, might work on real data.

    It would not if every run raises the same on the same line: shapes that do not fit, a missing argument.
    """
    kinds = {*filter(None, [without_data]), *map(kind_of, with_data)}
    return len(kinds) > 1 or len(set(map(_text, with_data))) > 1


def first_line(error: Exception) -> str:
    """The class of an exception and the first line of its text."""
    lines = _text(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # `__str__` of a user's exception may raise
        return ""
