"""What a sampler can draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Uniform:
    """Real numbers, `low <= x < high`. float16 and bfloat16 have 11 and 8 random bits, as on torch's CPU."""

    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Normal:
    """Real numbers of a normal distribution."""

    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Exponential:
    """Real numbers of an exponential distribution. None is zero, but for rounding."""

    rate: float = 1.0


@dataclass(frozen=True)
class Bernoulli:
    """One with the probability `p`, else zero; as any real dtype."""

    p: float


@dataclass(frozen=True)
class Integers:
    """`low <= x < low + count`, as int64; `count` is at most 2**64."""

    low: int
    count: int


Distribution = Uniform | Normal | Exponential | Bernoulli | Integers

FLOATING = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_REAL = FLOATING | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def dtypes_of(distribution: Distribution) -> frozenset[torch.dtype]:
    """The dtypes that a sampler writes."""
    if isinstance(distribution, Integers):
        return frozenset({torch.int64})
    return _REAL if isinstance(distribution, Bernoulli) else FLOATING


def is_of_64_bits(distribution: Distribution, dtype: torch.dtype) -> bool:
    """Whether an element takes 64 random bits instead of 32."""
    return isinstance(distribution, Integers) or (dtype == torch.float64 and not isinstance(distribution, Bernoulli))
