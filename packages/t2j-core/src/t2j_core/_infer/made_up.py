"""Values for runs on data: the examples, then made-up ones.

Whether shapes depend on values shows only if runs differ in the values that decide. Most often these are single
integers (`a.reshape(n, -1)`), few of which are valid: besides small ones, factors of the sizes of the arrays are tried.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch

from .._signature.signature import Leaf
from .made_up_constrained import constrained

Values = list[torch.Tensor]
"""One tensor for each operand, on the CPU."""
Make = Callable[[], Values]
Fill = Callable[[torch.Tensor], torch.Tensor]
"""Numbers for the positions 0, 1, 2 ..."""
Examples = Sequence["torch.Tensor | None"]
"""Tensors that the user passed as examples; None for operands that are only described."""

_FEW = 8  # integers in an array that may be sizes, axes or counts
_LARGEST = 4096  # a size that is tried: a function may make a square of it


def enough(operands: Sequence[Leaf]) -> int:
    """How many runs with different values show whether shapes depend on them."""
    return 3 if any(not leaf.is_inexact for leaf in operands) else 2


def values(operands: Sequence[Leaf], examples: Examples = ()) -> Iterator[Make]:
    """Functions that make the values of each run.

    The examples come first, with made-up values for those that are only described.
    """
    if any(example is not None for example in examples):
        for make in itertools.islice(_made_up(operands), None if None in examples else 1):
            yield functools.partial(_with_examples, examples, make)
    yield from _made_up(operands)


def _with_examples(examples: Examples, make: Make) -> Values:
    pairs = zip(make(), examples, strict=True)
    return [tensor if example is None else example.detach().clone() for tensor, example in pairs]


def _made_up(operands: Sequence[Leaf]) -> Iterator[Make]:
    for inexact, integer, flag in _KINDS:
        yield functools.partial(all_filled, operands, inexact, integer, flag)
    yield from constrained(operands)
    places = deciding(operands)
    for sizes in _sizes(operands, sum(math.prod(operands[i].shape) for i in places)):
        yield functools.partial(with_sizes, operands, places, sizes)
    for largest in (1e3, 1e6):
        yield functools.partial(all_filled, operands, functools.partial(_large, largest=largest), ramp, ones)


def all_filled(operands: Sequence[Leaf], inexact: Fill, integer: Fill, flag: Fill) -> Values:
    """Values from functions of positions: for inexact dtypes, for integers, for booleans."""
    return [_filled(leaf, inexact, integer, flag) for leaf in operands]


def deciding(operands: Sequence[Leaf]) -> list[int]:
    """The operands that may be sizes, axes or counts: single integers, else small arrays of integers."""
    small = [i for i, leaf in enumerate(operands) if _is_size(leaf)]
    return [i for i in small if operands[i].shape == ()] or small


def with_sizes(operands: Sequence[Leaf], deciding: Sequence[int], sizes: Sequence[int]) -> Values:
    """Values with these integers for the operands that decide."""
    rest = iter(sizes)
    return [
        _of_sizes(leaf, rest) if i in deciding else _filled(leaf, ramp, ones, ones) for i, leaf in enumerate(operands)
    ]


def _is_size(leaf: Leaf) -> bool:
    return not leaf.is_inexact and leaf.torch_dtype != torch.bool and math.prod(leaf.shape) <= _FEW


def _filled(leaf: Leaf, inexact: Fill, integer: Fill, flag: Fill) -> torch.Tensor:
    make = flag if leaf.torch_dtype == torch.bool else inexact if leaf.is_inexact else integer
    numbers = make(torch.arange(math.prod(leaf.shape)))
    return numbers.reshape(leaf.shape).to(leaf.torch_dtype)


def _zeros(i: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(i)


def ones(i: torch.Tensor) -> torch.Tensor:
    """1, 1, 1."""
    return torch.ones_like(i)


def ramp(i: torch.Tensor) -> torch.Tensor:
    """1, 2, 3, up to 100, then from 1 again."""
    return i % 100 + 1


def _mixed(i: torch.Tensor) -> torch.Tensor:
    """Scattered between -52 and 52: of both signs, no whole numbers, and hardly a matrix of them is singular."""
    scattered = i * 0x9E3779B1
    scattered = (scattered ^ scattered >> 15) * 0x85EBCA77 & 0xFFFFFFFF
    return ((scattered ^ scattered >> 13) % 50 + 2.5) * (1 - 2 * (i % 2))


def _large(i: torch.Tensor, largest: float) -> torch.Tensor:
    return _mixed(i) / 52 * largest


def _scalar_or(scalar: int, make: Fill) -> Fill:
    return lambda i: torch.full_like(i, scalar) if len(i) == 1 else make(i)


_KINDS: tuple[tuple[Fill, Fill, Fill], ...] = (  # for inexact dtypes, for integers, for booleans
    (_zeros, _zeros, _zeros),
    (_mixed, _scalar_or(1, lambda i: i % 100), lambda i: (i + 1) % 2),
    (ramp, _scalar_or(2, lambda i: i.flip(0) % 100), ones),
    (ones, _scalar_or(3, ones), lambda i: i % 2),
)


def _of_sizes(leaf: Leaf, sizes: Iterator[int]) -> torch.Tensor:
    numbers = [next(sizes) for _ in range(math.prod(leaf.shape))]
    return torch.tensor(numbers, dtype=torch.int64).reshape(leaf.shape).to(leaf.torch_dtype)


def _sizes(operands: Sequence[Leaf], slots: int) -> Iterator[list[int]]:
    """Sizes that an array may be split into or spread over, for that many integers."""
    if not 0 < slots <= _FEW:
        return
    pairs = [pair for whole in _wholes(operands) for pair in _pairs(whole)] + [(5, 5), (9, 9)]
    seen: set[tuple[int, ...]] = set()
    for found in itertools.chain.from_iterable((pair, pair[::-1]) for pair in pairs):
        sizes = found[:slots] + (1,) * (slots - 2)
        if sizes not in seen and max(sizes) <= _LARGEST:
            seen.add(sizes)
            yield list(sizes)


def _wholes(operands: Sequence[Leaf]) -> list[int]:
    """How many elements the largest operand has, or its leading or trailing axes have."""
    shape = max((leaf.shape for leaf in operands if not _is_size(leaf)), key=math.prod, default=())
    parts = [math.prod(part) for i in range(len(shape)) for part in (shape[i:], shape[: i + 1])]
    return [whole for whole in dict.fromkeys(parts) if whole > 1]


def _pairs(whole: int) -> list[tuple[int, int]]:
    """Pairs of sizes with `whole` as their product, and one for a repetition."""
    low = next(n for n in range(math.isqrt(whole), 0, -1) if whole % n == 0)
    smallest, further = _smallest_factor(whole), _smallest_factor(low)
    high = whole // low
    return [(whole, 1), (smallest, whole // smallest), (low, high), (low // further, high * further), (2, whole)]


def _smallest_factor(whole: int) -> int:
    return next((n for n in range(2, math.isqrt(whole) + 1) if whole % n == 0), whole)  # 1 of 1
