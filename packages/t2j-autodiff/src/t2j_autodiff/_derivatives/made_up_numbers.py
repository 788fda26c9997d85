"""Made-up numbers at which derivatives are compared and linearity is judged.

They come from private generators: nothing is drawn from torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from t2j_core.extend import Leaf, torch_device

_SEED_OF_TENSORS = 2891336453
_SEED_OF_LEAVES = 20


def small_normal(like: torch.Tensor, number: int = 0) -> torch.Tensor:
    """Normal random numbers in the shape, dtype and memory of a tensor; the same ones for the same `number`.

    They are small, because a hook on a tensor may clip a large gradient; not in half precision, whose range is short.
    """
    draw = torch.Generator(device=like.device).manual_seed(_SEED_OF_TENSORS + number)
    r = torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=draw)
    return r * 2**-10 if torch.finfo(like.dtype).eps < 1e-6 else r


def generator() -> torch.Generator:
    """The generator of the functions below, at its beginning. It draws on the CPU, in double precision."""
    return torch.Generator("cpu").manual_seed(_SEED_OF_LEAVES)


def points(like: Sequence[torch.Tensor], draw: torch.Generator) -> Iterator[tuple[float, list[torch.Tensor]]]:
    """(factor, point): zero, then multiples of one random point, then another random point, which has factor 0 too.

    The first three are of both signs and two sizes.
    """

    def random() -> list[torch.Tensor]:
        return [_normal(t.shape, t.dtype, draw).to(t.device, t.dtype) for t in like]

    largest = min(torch.finfo(t.dtype).max for t in like)
    large = 1024.0 if largest > 1e6 else 8.0  # half precision
    yield 0.0, [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in like]
    once = random()
    for factor in (1.0, -large, large, 1 / large):
        yield factor, [factor * t for t in once]
    yield 0.0, random()


def zeros(leaf: Leaf) -> torch.Tensor:
    """An operand of zeros."""
    return torch.zeros(leaf.shape, dtype=leaf.torch_dtype, device=torch_device())


def normal(leaf: Leaf, draw: torch.Generator) -> torch.Tensor:
    """Normal random numbers, on the CPU."""
    return _normal(leaf.shape, leaf.torch_dtype, draw).to(leaf.torch_dtype)


def general(leaf: Leaf, draw: torch.Generator) -> torch.Tensor:
    """An operand of positive numbers, a matrix that has an inverse, or indices that are valid everywhere."""
    if not is_inexact(leaf.torch_dtype):
        return zeros(leaf)
    if _is_square(leaf):
        n = leaf.shape[-1]
        values = _normal(leaf.shape, leaf.torch_dtype, draw) / (2 * math.sqrt(n)) + 2 * torch.eye(n)
    else:
        values = torch.rand(leaf.shape, dtype=torch.float64, generator=draw) + 0.5
    return values.to(torch_device(), leaf.torch_dtype)


def definite(leaf: Leaf, draw: torch.Generator) -> torch.Tensor:
    """An operand that is a symmetric positive definite matrix, or ones."""
    values = torch.ones(leaf.shape, dtype=torch.float64)
    if is_inexact(leaf.torch_dtype) and _is_square(leaf):
        root = _normal(leaf.shape, leaf.torch_dtype, draw)
        values = root @ root.mH / leaf.shape[-1] + torch.eye(leaf.shape[-1])
    return values.to(torch_device(), leaf.torch_dtype)


def is_inexact(dtype: torch.dtype) -> bool:
    """Whether PyTorch differentiates numbers of this dtype."""
    return dtype.is_floating_point or dtype.is_complex


def _normal(shape: Sequence[int], dtype: torch.dtype, draw: torch.Generator) -> torch.Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(tuple(shape), dtype=wide, generator=draw)


def _is_square(leaf: Leaf) -> bool:
    return len(leaf.shape) >= 2 and leaf.shape[-1] == leaf.shape[-2] > 1
