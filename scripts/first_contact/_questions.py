"""How questions are written down."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

IS_GPU = os.environ.get("T2J_FIRST_DEVICE", "cuda") != "cpu"
NOT_HERE = "-"  # the answer to a question about something that this machine or this version does not have


class Question(NamedTuple):
    """A function that returns an answer as JSON can hold it, or raises. It may take that many seconds."""

    name: str
    ask: Callable[[], object]
    seconds: float
    needs_gpu: bool


QUESTIONS: list[Question] = []


def question(seconds: float, *, needs_gpu: bool = False) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Add a function to the questions, which are asked in the order of the code."""

    def added(ask: Callable[[], object]) -> Callable[[], object]:
        QUESTIONS.append(Question(ask.__name__, ask, seconds, needs_gpu))
        return ask

    return added


def check(is_right: bool, what: str, found: object = None) -> None:
    """Raise if something is wrong. Python removes `assert` under -O."""
    if not is_right:
        raise AssertionError(what if found is None else f"{what}: {found}")
