"""The options of `torch2jax`, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ._errors import ArgumentError, describe

_CHOICES = {"outputs": ("auto", "copy", "out"), "arguments": ("auto", "copy", "check")}


@dataclass(frozen=True)
class Options:
    """How a function is wrapped; see `torch2jax`."""

    output_shapes: Any = None
    mutable_argnums: Any = ()
    rng: bool = False
    outputs: str = "auto"
    has_side_effect: bool = False
    name: str | None = None
    arguments: str = "auto"

    def __post_init__(self) -> None:
        """Check the options, and make a tuple of `mutable_argnums`."""
        for option, choices in _CHOICES.items():
            if getattr(self, option) not in choices:
                raise ArgumentError(
                    describe(
                        f"`{option}` is unknown.",
                        expected='"{}", "{}" or "{}"'.format(*choices),
                        got=repr(getattr(self, option)),
                        remedy="Choose one.",
                    )
                )
        object.__setattr__(self, "mutable_argnums", argument_numbers("mutable_argnums", self.mutable_argnums))


def argument_numbers(option: str, given: Any) -> tuple[int, ...]:
    """Positions of arguments as a tuple, from one number or several."""
    numbers = tuple(given) if isinstance(given, Iterable) else (given,)
    if any(isinstance(number, bool) or not isinstance(number, int) or number < 0 for number in numbers):
        raise ArgumentError(
            describe(
                f"`{option}` must be positions of arguments.",
                expected="non-negative integers",
                got=repr(given),
                remedy="Count positional arguments from 0.",
            )
        )
    return numbers


def are_at(option: str, numbers: Sequence[int], paths: Sequence[str], name: str) -> list[bool]:
    """For each path of an array, whether it is in an argument at one of the positions. Every position must have one."""
    owners = [path.split("]")[0] + "]" for path in paths]
    for number in numbers:
        if f"args[{number}]" not in owners:
            raise ArgumentError(
                describe(
                    f"`{option}` names position {number}, but {name} has no array there.",
                    expected=f"a position of an array among {', '.join(paths) or 'no arrays'}",
                    got=number,
                    remedy="Correct the position, and pass that argument by position.",
                )
            )
    chosen = {f"args[{number}]" for number in numbers}
    return [owner in chosen for owner in owners]
