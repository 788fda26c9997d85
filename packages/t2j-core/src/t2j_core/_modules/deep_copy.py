"""Deep copies of modules, in which caches over methods are copied too."""

from __future__ import annotations

import copy
import functools
from typing import Any, TypeGuard

import torch

from .parts import parts

_CACHED: Any = type(functools.lru_cache(lambda: None))


class _Later:
    """Calls a method that is known only after the module that it belongs to has been copied."""

    method: Any = None

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self.method(*args, **kwargs)


def deep_copy(module: torch.nn.Module, memo: dict[int, Any]) -> torch.nn.Module:
    """As `copy.deepcopy`, but it copies `self.table = functools.lru_cache(self._table)`, which `deepcopy` shares."""
    later: list[tuple[_Later, Any]] = []
    for part in parts(module):
        method = _method(part)
        if method is not None and not part.cache_info().currsize:  # a full one is a constant
            later.append((_Later(), method))
            memo[id(part)] = functools.lru_cache(**part.cache_parameters())(later[-1][0])
    copied = copy.deepcopy(module, memo)
    for place, method in later:
        place.method = copy.deepcopy(method, memo)
    return copied


def _method(part: object) -> Any:
    """The method of a module that a cache is over, perhaps with some arguments; None if `part` is no such cache."""
    function = part.__wrapped__ if is_cache(part) else None
    function = method = function.method if isinstance(function, _Later) else function
    while isinstance(method, functools.partial):
        method = method.func
    return function if isinstance(getattr(method, "__self__", None), torch.nn.Module) else None


def is_cache(part: object) -> TypeGuard[functools._lru_cache_wrapper[Any]]:
    """Whether a part of a module is a function with a `functools.lru_cache` or `functools.cache`."""
    return type(part) is _CACHED


def is_copied_cache(part: object) -> bool:
    """Whether a part of a module is a cache that `deep_copy` has made for it."""
    return is_cache(part) and isinstance(part.__wrapped__, _Later)
