"""Made-up values that meet common constraints: covariances, bounds of an interval, probabilities, classes.

`torch.distributions` and other libraries validate their arguments: a covariance is positive definite, a lower bound is
below an upper one, probabilities add up to 1. Values that are made for each operand separately meet none of these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch

from .._signature.signature import Leaf

Pattern = Callable[[tuple[int, ...], int, int], torch.Tensor]
"""(shape, place, count): values for the operand at `place` among `count` operands."""


def constrained(operands: Sequence[Leaf]) -> Iterator[Callable[[], list[torch.Tensor]]]:
    """Functions that make the values of each run. Square operands are diagonal matrices."""
    patterns: tuple[tuple[float | None, Pattern], ...] = (
        (None, _scattered),  # and integers are classes: 0, 1, 0
        (1, _rising),
        (2, _falling),
        (1, _last_between),
        (1, _first_between),
        (1, _equal_parts),
        (1, _unequal_parts),
        (1, _one_of_many),
        (2, _large),
    )
    for diagonal, make in patterns:
        yield functools.partial(_values, operands, diagonal, make)


def _values(operands: Sequence[Leaf], diagonal: float | None, make: Pattern) -> list[torch.Tensor]:
    rest = [i for i, leaf in enumerate(operands) if leaf.is_inexact and (diagonal is None or not _is_square(leaf))]
    values = []
    for i, leaf in enumerate(operands):
        if i in rest:
            value = make(leaf.shape, rest.index(i), len(rest))
        elif leaf.is_inexact:
            value = torch.eye(leaf.shape[-1], dtype=torch.float64).expand(leaf.shape) * (diagonal or 1)
        else:
            value = (_positions(leaf.shape) + 1) % 2
        values.append(value.to(leaf.torch_dtype).contiguous())
    return values


def _is_square(leaf: Leaf) -> bool:
    return len(leaf.shape) > 1 and leaf.shape[-1] == leaf.shape[-2]


def _positions(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.float64).flatten().cumsum(0).reshape(shape)


def _scattered(shape: tuple[int, ...], place: int, count: int) -> torch.Tensor:
    """Between 0 and 1, hardly two of them equal."""
    return (_positions(shape) * 0.6180339887) % 1 * 0.9 + 0.05


# Each operand has one value, between 0 and 1. Arguments come in any order: `low, high, x` or `x, low, high`.


def _rising(shape: tuple[int, ...], place: int, count: int) -> torch.Tensor:
    return torch.full(shape, (place + 1) / (count + 1), dtype=torch.float64)


def _falling(shape: tuple[int, ...], place: int, count: int) -> torch.Tensor:
    return 1 - _rising(shape, place, count)


def _last_between(shape: tuple[int, ...], place: int, count: int) -> torch.Tensor:
    return torch.full(shape, 0.5 if place == count - 1 else (place + 1) / (count + 0.5), dtype=torch.float64)


def _first_between(shape: tuple[int, ...], place: int, count: int) -> torch.Tensor:
    return torch.full(shape, 0.5 if place == 0 else place / (count + 0.5), dtype=torch.float64)


# Along the last axis the numbers add up to 1.


def _equal_parts(shape: tuple[int, ...], place: int, count: int) -> torch.Tensor:
    return torch.full(shape, 1 / shape[-1] if shape and shape[-1] else 0.5, dtype=torch.float64)


def _unequal_parts(shape: tuple[int, ...], place: int, count: int) -> torch.Tensor:
    positions = _positions(shape)
    return positions / positions.sum(-1, keepdim=True) if shape else positions * 0.25


def _one_of_many(shape: tuple[int, ...], place: int, count: int) -> torch.Tensor:
    """1, 0, 0: of length 1 as well."""
    return (torch.arange(shape[-1]) == 0).double().expand(shape) if shape else torch.ones((), dtype=torch.float64)


def _large(shape: tuple[int, ...], place: int, count: int) -> torch.Tensor:
    """Degrees of freedom, which are more than a matrix has rows."""
    return torch.full(shape, 64.0 + place, dtype=torch.float64)
