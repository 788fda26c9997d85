"""`rng=True`: torch's generators seeded from a JAX key, for one call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

_turns = threading.RLock()
"""Torch's default generators are global: seeded calls of several threads take turns."""


def seeded(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with the data of a JAX key as an additional first argument.

    The same key gives the same numbers; the generators are as before afterwards.
    """

    def call(key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if key.is_meta:
            return fn(*args, **kwargs)
        generators = [torch.default_generator]
        if key.is_cuda:
            generators.append(torch.cuda.default_generators[key.device.index])
        seed = seed_of(key)
        with _turns:
            states = [generator.get_state() for generator in generators]
            try:
                for generator in generators:
                    generator.manual_seed(seed)
                return fn(*args, **kwargs)
            finally:
                for generator, state in zip(generators, states, strict=True):
                    generator.set_state(state)

    return call


def seed_of(key: torch.Tensor) -> int:
    """A 63-bit seed from the words of a key (uint32[n]); all of them count."""
    seed = 0
    for word in key.tolist():
        seed = (seed * 0x100000001B3 ^ word) % (1 << 63) if seed >> 31 else (seed << 32 | word) % (1 << 63)
    return seed
