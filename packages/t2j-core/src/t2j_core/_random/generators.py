"""Torch's generators: which operations draw from them, and how one says which number of a key comes next."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch._ops import OpOverload

from .. import _compat

_PROBABILITIES = ("p", "dropout_p", "dropout")
_MODES = ("train", "training")


@functools.cache
def may_draw(func: OpOverload) -> bool:
    """Whether an operation draws random numbers for some arguments."""
    return torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())  # higher-order operators have no tags


@functools.cache
def _parameters(func: OpOverload) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of the arguments of an operation, and the defaults."""
    arguments = func._schema.arguments
    defaults = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    return tuple(argument.name for argument in arguments), defaults


def named(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operation by name."""
    names, defaults = _parameters(func)
    return defaults | dict(zip(names, args, strict=False)) | dict(kwargs)


def drawn_from(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Generator | None:
    """The generator that an operation draws from: its own, or the default one of the CPU; None if it draws nothing."""
    return generator_of(named(func, args, kwargs)) if may_draw(func) else None


def generator_of(given: Mapping[str, Any]) -> torch.Generator | None:
    """The same for the named arguments of an operation that may draw."""
    return None if has_no_effect(given) else source_of(given)


def has_no_effect(given: Mapping[str, Any]) -> bool:
    """Whether an operation is dropout that changes nothing, of attention too. It may advance the generator."""
    return any(given.get(name) is False for name in _MODES) or any(_is_zero(given.get(name)) for name in _PROBABILITIES)


def source_of(given: Mapping[str, Any]) -> torch.Generator:
    """The generator that an operation is given, or the default one of the CPU for any default one."""
    generator: torch.Generator | None = given.get("generator")
    if generator is None or _compat.is_default_generator(generator):
        return torch.default_generator
    return generator


def device_of(given: Mapping[str, Any]) -> torch.device:
    """The device of the numbers that an operation with these named arguments draws."""
    for value in given.values():
        if isinstance(value, torch.Tensor):
            return value.device
    device = given.get("device")
    return torch.device("cpu") if device is None else torch.device(device)


def _is_zero(value: object) -> bool:
    return isinstance(value, (int, float)) and value == 0


def default_generator(device: torch.device) -> torch.Generator:
    """The generator that operations on a device draw from by default."""
    return torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator


# --- the seed of a generator as a place -------------------------------------------------------------------------------
#
# Torch's own generator holds the position of the next draw, in its seed. So whoever saves and restores its state
# (`torch.utils.checkpoint`, `fork_rng`) gets the same numbers again, and a function that seeds it leaves this scheme.

_MARK = 0x74326A72
_MOST_POSITIONS, _MOST_KEYS = 1 << 20, 1 << 12


def begin(generator: torch.Generator, key: int) -> int:
    """Have a generator stand at the first draw from a key, given its number. Returns that, or 0 for a large one."""
    number = key if key < _MOST_KEYS else 0
    generator.manual_seed(_MARK << 32 | number * _MOST_POSITIONS)
    return number


def is_marked(seed: int) -> bool:
    """Whether a seed is a place."""
    return seed >> 32 == _MARK


def place(generator: torch.Generator) -> tuple[int, int] | None:
    """The number of a key and the position of the next draw; None for a generator that was seeded."""
    seed = generator.initial_seed()
    if not is_marked(seed):
        return None
    return divmod(seed & 0xFFFFFFFF, _MOST_POSITIONS)


def advance(generator: torch.Generator) -> bool:
    """Go to the next position; False if there is none."""
    seed = generator.initial_seed() + 1
    if seed % _MOST_POSITIONS:
        generator.manual_seed(seed)
    return bool(seed % _MOST_POSITIONS)


def was_drawn_from(generator: torch.Generator) -> bool:
    """Whether torch itself has drawn from a generator since it was seeded."""
    if generator.device.type == "cuda":
        return generator.get_offset() != 0
    fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
    return not torch.equal(fresh.get_state(), generator.get_state())
