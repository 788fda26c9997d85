"""`Sampler`: what fills a tensor with random numbers from a JAX key, on one type of device."""

from __future__ import annotations

import functools
import logging
import math
import struct
from typing import Protocol

import torch

from .._base.config import config
from .distributions import Bernoulli, Distribution, Exponential, Integers, Normal, Uniform, is_of_64_bits

logger = logging.getLogger("t2j_core")


class Sampler(Protocol):
    """Fills a tensor, which is contiguous and of one of `dtypes_of(distribution)`.

    The numbers depend on the words of the key (two or four), the position of the draw, the shape, the dtype and the
    distribution, and on nothing else.
    """

    def __call__(
        self, out: torch.Tensor, key: torch.Tensor, position: int, distribution: Distribution, /
    ) -> object: ...


@functools.cache
def _by_triton() -> Sampler | None:
    """The sampler for GPUs; None where Triton cannot be used. Tried once, so that a key gives the same numbers."""
    try:
        check(_fill, torch.device("cuda"))
    except Exception as reason:  # not installed, or without a compiler for its launcher
        logger.info("random numbers with `rng=True` are seeded from the host, because Triton fails: %s", reason)
        return None
    return _fill


# The first uniform numbers for the key (1, 2) at position 3, in multiples of 2**-24.
_KNOWN = [5829956, 5875116, 12720634, 13806435, 2888247, 4528120]


def check(sampler: Sampler, device: torch.device) -> None:
    """Raise unless a sampler draws the right numbers on a device, which the host waits for."""
    key, out = torch.tensor([1, 2], dtype=torch.uint32, device=device), torch.empty(len(_KNOWN), device=device)
    sampler(out, key, 3, Uniform())
    if (found := (out * 2.0**24).tolist()) != _KNOWN:
        raise RuntimeError(f"its numbers are {found} instead of {_KNOWN}")


def sampler_of(device_type: str) -> Sampler | None:
    """The sampler for a type of device; None where torch's generators are to be seeded."""
    return samplers[device_type]() if device_type in samplers and config.keys_on_device else None


samplers = {"cuda": _by_triton}
"""What finds the sampler for a type of device. On a CPU a seed costs nothing."""


def _fill(out: torch.Tensor, key: torch.Tensor, position: int, distribution: Distribution, /) -> None:
    """By one launch of the kernel, on torch's current stream."""
    from . import philox

    if not out.numel():
        return
    kind, a, b = _arguments(distribution)
    is_wide = is_of_64_bits(distribution, out.dtype)
    grid = (math.ceil(out.numel() / ((2 if is_wide else 4) * philox.BLOCKS)),)
    options = {"WORDS": key.numel(), "KIND": kind, "WIDE": is_wide, "BLOCKS": philox.BLOCKS}
    philox.draw[grid](out, key, out.numel(), position, a, b, **options)


def _arguments(distribution: Distribution) -> tuple[int, int, int]:
    """The kind of the distribution, and its parameters as the kernel takes them."""
    match distribution:
        case Uniform(low, high):
            return 0, _bits_of(low), _bits_of(high)
        case Normal(mean, std):
            return 1, _bits_of(mean), _bits_of(std)
        case Exponential(rate):
            return 2, _bits_of(rate), 0
        case Bernoulli(p):
            return 3, math.ceil(p * 2**32), 0
        case Integers(low, count):
            return 4, low, _signed(count)


def _bits_of(number: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


def _signed(count: int) -> int:
    """A number below 2**64 as a signed one; 2**64 as 0."""
    return (count + (1 << 63)) % (1 << 64) - (1 << 63)
