"""`KeyedDraws`: the dispatch mode in which operations draw their numbers from a key on the device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload

from .. import _compat
from .distributions import Distribution
from .generators import (
    advance,
    default_generator,
    device_of,
    generator_of,
    has_no_effect,
    may_draw,
    named,
    place,
    source_of,
)
from .operations import NotReplacedError, replacement_of
from .sampler import Sampler, samplers


def draws_otherwise(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation in a run without data draws from a default generator, and no sampler would replace it."""
    if not may_draw(func) or _compat.is_composite(func):
        return False
    given = named(func, args, kwargs)
    if generator_of(given) is not torch.default_generator:
        return False
    return replacement_of(func) is None or device_of(given).type not in ("meta", *samplers)


class KeyedDraws(_compat.DispatchMode):
    """Takes operations that draw from the default generator of a device, as long as its seed is a place.

    `keys` has the key for each number in a place. `fall_back` seeds torch's generators from a key, for an operation
    that only torch can run; it waits for the GPU.
    """

    def __init__(
        self,
        device: torch.device,
        sampler: Sampler,
        keys: Mapping[int, torch.Tensor],
        fall_back: Callable[[torch.Tensor], object],
    ) -> None:
        super().__init__()
        self._device, self._sampler, self._keys, self._fall_back = device, sampler, keys, fall_back
        self._generator = default_generator(device)
        self.has_captured: bool = False
        """Whether an operation was captured in a CUDA graph, which draws from torch's generator when it is replayed."""

    def handle(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation; if it draws, on numbers from the key."""
        if not may_draw(func):
            return self.operate(func, args, kwargs)
        given, replace = named(func, args, kwargs), replacement_of(func)
        is_idle = replace is None and has_no_effect(given)
        if is_idle or source_of(given) is not torch.default_generator:
            return self.operate(func, args, kwargs)
        if _compat.is_capturing(self._device):  # where a generator does not tell its seed
            self.has_captured = True
            return self.operate(func, args, kwargs)
        at, device = place(self._generator), device_of(given)
        is_here = device.type == self._device.type and device.index in (None, self._device.index)
        if at is None or not (is_here or device.type == "cpu"):
            return self.operate(func, args, kwargs)  # seeded by the function; or on another GPU, which gets no seed
        if _compat.is_composite(func):  # in inference mode
            with self:
                return func.decompose(*args, **kwargs)
        key = self._key(at[0])
        if replace is not None and is_here:
            with contextlib.suppress(NotReplacedError):
                return replace(self._fill(key, at[1]), given)
        self._fall_back(key)
        return self.operate(func, args, kwargs)

    def _key(self, number: int) -> torch.Tensor:
        key = self._keys.get(number)
        if key is None:
            raise KeyIsGoneError("a backward draws random numbers, and their key is no longer known")
        return key

    def _fill(self, key: torch.Tensor, position: int) -> Callable[[torch.Tensor, Distribution], None]:
        def fill(out: torch.Tensor, distribution: Distribution) -> None:
            if not advance(self._generator):
                raise NotReplacedError
            self._sampler(out, key, position, distribution)

        return fill


class KeyIsGoneError(RuntimeError):
    """A kept autograd graph runs a part of the forward again, which draws. The caller runs the whole forward again."""
