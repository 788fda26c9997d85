"""`rng=True`: random numbers from a JAX key, for one call.

On a CPU the key seeds torch's generators. A GPU would have to end all work queued before the host can read the key, so
there the numbers are computed from the key by a kernel (`_random.keyed`). A function of which that is not known to
work, `on_device=False`, and operations for which there is no such kernel, wait for a seed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .. import _compat
from .._base.turns import turns
from .._random.again import begin_at
from .._random.generators import default_generator, is_marked, place, was_drawn_from
from .._random.keyed import KeyedDraws
from .._random.sampler import Sampler, sampler_of
from .traced_ahead import is_traced_ahead

logger = logging.getLogger("t2j_core")


class _HiddenDrawError(Exception):
    """The function has drawn numbers that no operation of torch shows, such as those of a CUDA graph."""


def seeded(fn: Callable[..., Any], *, on_device: bool = False) -> Callable[..., Any]:
    """`fn` with the data of a JAX key as an additional first argument.

    The same key gives the same numbers. After the call the generators are in the state they had before it.
    """
    has_hidden_draws = False

    def call(key: torch.Tensor, /, *args: object, **kwargs: object) -> Any:
        nonlocal has_hidden_draws
        if on_device and not has_hidden_draws:
            try:
                with seeded_by(key, on_device=True):
                    return fn(*args, **kwargs)
            except _HiddenDrawError as reason:
                has_hidden_draws = True
                logger.info("random numbers are seeded from the host from now on: %s", reason)
        with seeded_by(key):
            return fn(*args, **kwargs)

    return call


@contextlib.contextmanager
def seeded_by(key: torch.Tensor, *, on_device: bool = False) -> Iterator[None]:
    """Within, torch draws from a key; not if it holds no data, as in a trace."""
    if key.is_meta or is_traced_ahead():
        yield
        return
    key = _compat.unwrapped(key)
    sampler = sampler_of(key.device.type) if on_device and _is_one_key(key) else None
    with _seeds(key) if sampler is None else _numbers_of(key, sampler):
        yield


def _is_one_key(key: torch.Tensor) -> bool:
    """Whether it is one key, not those of a batch, with as many words as the kernel takes."""
    return key.ndim == 1 and len(key) in (2, 4) and _compat.DispatchMode.compiler_works_inside


# --- seeds ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _seeds(key: torch.Tensor) -> Iterator[None]:
    """Within, torch's generators are seeded from a key. On a GPU this waits."""
    seed = seed_of(key)
    with turns, _lock_of(key.device), _restored(*_generators(key.device)):
        _seed(key.device, seed)
        yield


def _generators(device: torch.device) -> list[torch.Generator]:
    """Those that a function draws from whose key is on a device."""
    return list(dict.fromkeys((torch.default_generator, default_generator(device))))


def _seed(device: torch.device, seed: int) -> None:
    for generator in _generators(device):
        generator.manual_seed(seed)


@contextlib.contextmanager
def _restored(*generators: torch.Generator) -> Iterator[None]:
    states = [generator.get_state() for generator in generators]
    try:
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


def _fall_back(key: torch.Tensor) -> None:
    seed = seed_of(key)
    _seed(key.device, ~seed & _64_BITS if is_marked(seed) else seed)


# --- numbers from the device ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _numbers_of(key: torch.Tensor, sampler: Sampler) -> Iterator[None]:
    """Within, operations draw from a key in device memory, without a wait."""
    with contextlib.ExitStack() as stack:
        own = _OwnGenerator(key.device, stack)
        keys = begin_at(key, sampler, _fall_back)
        with KeyedDraws(key.device, sampler, keys, own.fall_back) as mode:
            yield
        generator = own.generator
        if mode.has_captured or (place(generator) is not None and was_drawn_from(generator)):
            raise _HiddenDrawError("a CUDA graph, or code that torch does not know as an operation, draws them")


_locks: dict[torch.device, contextlib.AbstractContextManager[object]] = {}


def _lock_of(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The lock of a device's generator, which a thread holds while its function runs. With one lock for all devices, a
    function that waits for another GPU (`.item()` after a collective) might wait for ever.
    """
    return _locks.setdefault(device, threading.RLock())


class _OwnGenerator:
    """The default generator of a device, which belongs to this thread until `stack` is closed."""

    def __init__(self, device: torch.device, stack: contextlib.ExitStack) -> None:
        self.generator = default_generator(device)
        self._lock, self._stack = _lock_of(device), stack
        self._is_seeded = False
        self._take()
        stack.callback(self._give_back)

    def _take(self) -> None:
        self._lock.__enter__()
        self._before = self.generator.get_state()

    def _give_back(self) -> None:
        self.generator.set_state(self._before)
        self._lock.__exit__(None, None, None)

    def fall_back(self, key: torch.Tensor) -> None:
        """Seed the generators. That of the CPU belongs to who has `turns`, which is taken before a lock of a device."""
        if not self._is_seeded:
            self._give_back()
            self._stack.enter_context(turns)
            self._take()
            if self.generator is not torch.default_generator:
                self._stack.enter_context(_restored(torch.default_generator))
            self._is_seeded = True
        _fall_back(key)
