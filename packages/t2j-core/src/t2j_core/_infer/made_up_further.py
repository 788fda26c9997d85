"""Values for further runs of a function that asks for values, which show differences that the first values hide.

The first values are the same for all single integers, so that `a.transpose(i, j)` does nothing. Here they differ; they
are on both sides of numbers that the function compares with; and they add up to sizes of axes, as
`torch.split(a, sizes.tolist())` needs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from .._signature.signature import Leaf
from .made_up import Make, Values, all_filled, deciding, ones, ramp, with_sizes

_MOST = 6  # of a kind
_LONGEST = 1024


def further(operands: Sequence[Leaf], numbers: Iterable[float]) -> Iterator[Make]:
    """Functions that make the values of each run; `numbers` are those that the function may compare with."""
    flags = [i for i, leaf in enumerate(operands) if leaf.torch_dtype == torch.bool]
    places = deciding(operands)
    for integers in _different(operands, places):
        yield functools.partial(with_sizes, operands, places, integers)
    if len(flags) > 1:
        for count in range(1, min(1 << len(flags), _MOST)):
            yield functools.partial(_with_flags, operands, flags, count)
    yield from _around(operands, places, tuple(numbers))
    many = places or [i for i, leaf in enumerate(operands) if _is_list(leaf)][:1]
    for integers in _parts(operands, many):
        yield functools.partial(with_sizes, operands, many, integers)
    if any(leaf.is_inexact for leaf in operands):
        for make in (ramp, _below, _part, _small_part):
            yield functools.partial(all_filled, operands, make, ones, ones)


def _is_list(leaf: Leaf) -> bool:
    is_integer = not leaf.is_inexact and leaf.torch_dtype != torch.bool
    return is_integer and len(leaf.shape) == 1 and leaf.shape[0] <= _LONGEST


def _slots(operands: Sequence[Leaf], places: Sequence[int]) -> int:
    return sum(math.prod(operands[i].shape) for i in places)


def _different(operands: Sequence[Leaf], places: Sequence[int]) -> Iterator[Sequence[int]]:
    """Integers of which no two are equal, each of them an axis if there are enough axes."""
    slots = _slots(operands, places)
    axes = max((len(leaf.shape) for i, leaf in enumerate(operands) if i not in places), default=0)
    if slots > 1:
        yield from itertools.islice(itertools.permutations(range(max(axes, slots)), slots), _MOST)
        yield [*[1] * (slots - 1), 2]  # sizes of which the first are those of a batch
        yield [*[1] * (slots - 2), 2, 3]


def _with_flags(operands: Sequence[Leaf], flags: Sequence[int], count: int) -> Values:
    made = all_filled(operands, ramp, ones, ones)
    for bit, i in enumerate(flags):
        made[i] = torch.full_like(made[i], bool(count >> bit % 8 & 1))
    return made


def _around(operands: Sequence[Leaf], places: Sequence[int], numbers: Sequence[float]) -> Iterator[Make]:
    """Values below and above numbers."""
    near = dict.fromkeys(math.floor(number) + step for number in numbers for step in (1, 0, -1) if number + step >= 0)
    if places:
        for number in near:
            yield functools.partial(with_sizes, operands, places, [number] * _slots(operands, places))
    if any(leaf.is_inexact for leaf in operands):
        for beside in dict.fromkeys(number + step for number in numbers[:_MOST] for step in (1, -1)):
            yield functools.partial(all_filled, operands, functools.partial(_all, number=beside), ones, ones)


# Numbers stay positive: many loops never end for a negative tolerance or count.


def _below(i: torch.Tensor) -> torch.Tensor:
    return ramp(i) if len(i) == 1 else -ramp(i)


def _part(i: torch.Tensor) -> torch.Tensor:
    return 1 / (i % 100 + 2)


def _small_part(i: torch.Tensor) -> torch.Tensor:
    return _part(i) / 16


def _all(i: torch.Tensor, number: float) -> torch.Tensor:
    return torch.full_like(i, abs(number) if len(i) == 1 else number, dtype=torch.float64)


def _parts(operands: Sequence[Leaf], places: Sequence[int]) -> Iterator[Sequence[int]]:
    """Integers that add up to the size of an axis."""
    slots = _slots(operands, places)
    shapes = [leaf.shape for i, leaf in enumerate(operands) if i not in places]
    for size in itertools.islice(dict.fromkeys(itertools.chain.from_iterable(shapes)), _MOST):
        if 0 < slots <= size:
            rest = size - slots + 1
            yield [rest, *[1] * (slots - 1)]
            yield [*[1] * (slots - 1), rest]
            yield [size // slots + (i < size % slots) for i in range(slots)]
