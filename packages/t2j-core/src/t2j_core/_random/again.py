"""What a backward draws that runs parts of its forward again, as `torch.utils.checkpoint` does.

Such a part restores the state of torch's generator, whose seed is a place: the number of a key, and a position. `Keys`
knows the keys of the forwards that ran within it. The place in a kept graph has no key, so its backward raises
`KeyIsGoneError`, and its caller runs the whole forward again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .. import _compat
from .generators import begin, default_generator
from .keyed import KeyedDraws
from .sampler import Sampler


class _Thread(threading.local):
    keys: Keys | None = None


_thread = _Thread()
_used: dict[torch.device, tuple[Sampler, Callable[[torch.Tensor], object]]] = {}
"""The devices on which keys are in use, and what `KeyedDraws` needs there."""


class Keys:
    """The keys of the forwards that run in this context on this thread, by numbers from 1.

    A context inside another shares its keys: the backward of a derivative may run parts of the innermost forward again.
    """

    def __enter__(self) -> Keys:
        self._outer, _thread.keys = _thread.keys, self
        self._keys: dict[int, torch.Tensor] = {} if self._outer is None else self._outer._keys
        return self

    def __exit__(self, *_: object) -> None:
        _thread.keys = self._outer
        if self._outer is None:
            self._keys.clear()

    def add(self, key: torch.Tensor) -> int:
        """The number of a key."""
        self._keys[len(self._keys) + 1] = key
        return len(self._keys)

    def again(self) -> contextlib.AbstractContextManager[object]:
        """The context for a backward of these forwards."""
        return around_backward_of(self._keys)


def around_backward_of(keys: Mapping[int, torch.Tensor]) -> contextlib.AbstractContextManager[object]:
    """The context for a backward. Only what Python code runs in it can draw again, so the mode is off for the rest."""
    if not _used:
        return contextlib.nullcontext()
    modes = [KeyedDraws(device, sampler, keys, seed) for device, (sampler, seed) in list(_used.items())]
    return _Around(modes)


class _Around(_compat.FunctionMode):
    """Turns the modes on while Python code calls torch."""

    def __init__(self, modes: list[KeyedDraws]) -> None:
        super().__init__()
        self._modes = modes

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function of torch inside the modes."""
        with contextlib.ExitStack() as stack:
            for mode in self._modes:
                stack.enter_context(mode)
            return func(*args, **kwargs)


def begin_at(key: torch.Tensor, sampler: Sampler, seed: Callable[[torch.Tensor], object]) -> Mapping[int, torch.Tensor]:
    """Have the generator of a key's device stand at its first draw; returns the key by its number.

    `seed` seeds torch's generators from a key, for operations that only torch can run.
    """
    _used[key.device] = sampler, seed
    number = 0 if _thread.keys is None else _thread.keys.add(key)
    return {begin(default_generator(key.device), number): key}
