"""`rng=True`: torch's generators seeded from a JAX key, for one call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .. import _compat
from .._base.turns import turns
from .traced_ahead import is_traced_ahead


def seeded(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with the data of a JAX key as an additional first argument.

    The same key gives the same numbers. After the call the generators are in the state they had before it.
    """

    def call(key: torch.Tensor, /, *args: object, **kwargs: object) -> Any:
        with seeded_by(key):
            return fn(*args, **kwargs)

    return call


@contextlib.contextmanager
def seeded_by(key: torch.Tensor) -> Iterator[None]:
    """Within, torch's generators are seeded from a key; not if it holds no data, as in a trace."""
    if key.is_meta or is_traced_ahead():
        yield
        return
    generators = [torch.default_generator]
    if key.is_cuda:
        generators.append(torch.cuda.default_generators[key.device.index])
    seed = seed_of(key)
    with turns:
        states = [generator.get_state() for generator in generators]
        try:
            for generator in generators:
                generator.manual_seed(seed)
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def seed_of(key: torch.Tensor) -> int:
    """A 64-bit seed from the words of a key (uint32[n]).

    Every bit of the key changes the low 32 bits, the only ones that torch's generator on the CPU uses: the words go
    through the finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    """
    seed = 0
    for word in _compat.numbers_in(key):
        seed = (seed + word + 0x9E3779B97F4A7C15) & _64_BITS
        seed = ((seed ^ seed >> 30) * 0xBF58476D1CE4E5B9) & _64_BITS
        seed = ((seed ^ seed >> 27) * 0x94D049BB133111EB) & _64_BITS
        seed ^= seed >> 31
    return seed


_64_BITS = (1 << 64) - 1
