"""What a module writes into its class during a call: the copies of a module and itself share the class."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from ._parts import PLAIN, inside

_CACHED: Any = type(functools.lru_cache(lambda: None))
_MOST_PARTS = 1000


class ClassLevel:
    """The attributes of classes, the containers among them, and the `functools.lru_cache`s over methods.

    Tensors that a call puts there are of that call, and go with it. All else stays, as in torch: it belongs to others.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        classes = dict.fromkeys(cls for kind in set(map(type, parts)) for cls in kind.__mro__)
        own = [cls for cls in classes if not str(cls.__module__).startswith(("torch.", "builtins"))]
        self._classes = [cls for cls in own if issubclass(cls, torch.nn.Module)]
        self._caches = [function for cls in own for value in vars(cls).values() for function in _cached(value)]
        self._caches += [part for part in parts if type(part) is _CACHED]  # `self.table = lru_cache(self._table)`
        self._before: list[tuple[Any, dict[Any, Any]]] = []

    def begin(self) -> None:
        """Look at it before a call."""
        self._before = [(cls, dict(vars(cls))) for cls in self._classes]
        seen: set[int] = set()
        todo = [value for _, values in self._before for value in values.values() if type(value) in PLAIN]
        while todo:
            container = todo.pop()
            if id(container) not in seen:
                seen.add(id(container))
                values = _items(container)
                self._before.append((container, values))
                todo += [value for value in values.values() if type(value) in PLAIN]

    def end(self) -> None:
        """Take out the tensors of the call."""
        for holder, before in self._before:
            now = _items(holder)
            new = [k for k, value in now.items() if before.get(k, self) is not value and _holds_tensor(value)]
            if new:
                _put_back(holder, before, new)
        for cache in self._caches:
            if cache.cache_info().misses:
                cache.cache_clear()


def _cached(value: Any) -> list[Any]:
    """The cache over a method or property, if there is one."""
    function = value.fget if isinstance(value, property) else value
    return [function] if type(function) is _CACHED else []


def _items(holder: Any) -> dict[Any, Any]:
    if isinstance(holder, type):
        return dict(vars(holder))
    return dict(holder) if isinstance(holder, dict) else dict(enumerate(list(holder)))


def _put_back(holder: Any, before: dict[Any, Any], keys: list[Any]) -> None:
    """Undo what was written at `keys`; other threads may be writing at others."""
    if isinstance(holder, (type, dict)):
        for key in keys:
            _put_back_one(holder, key, key in before, before.get(key))
    elif isinstance(holder, set):
        holder.clear()
        holder.update(before.values())
    else:
        holder.clear()
        holder.extend(before.values())


def _put_back_one(holder: Any, key: Any, was_there: bool, value: Any) -> None:
    if isinstance(holder, dict):
        if was_there:
            holder[key] = value
        else:
            holder.pop(key, None)
    elif was_there:
        setattr(holder, key, value)
    elif key in vars(holder):
        delattr(holder, key)


def _holds_tensor(value: Any) -> bool:
    todo, seen = [value], set[int]()
    while todo and len(seen) < _MOST_PARTS:
        part = todo.pop()
        if isinstance(part, torch.Tensor):
            return True
        if id(part) not in seen and not isinstance(part, (type, torch.nn.Module)):
            seen.add(id(part))
            todo += inside(part)
    return False
