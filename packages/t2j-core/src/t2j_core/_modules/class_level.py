"""State that modules keep at their classes, which a module and its copies share."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .. import _compat
from .deep_copy import is_cache, is_copied_cache
from .parts import BUILTIN_CONTAINERS, inside
from .put_back import put_back_of

_MOST_PARTS = 1000
_Holder = type | dict[Any, Any] | list[Any] | set[Any] | collections.deque[Any]

_MISSING = object()


class _Trials(threading.local):
    depth = 0


_trials = _Trials()


@contextlib.contextmanager
def trial() -> Iterator[None]:
    """Within, this thread tries functions out, perhaps on made-up data."""
    _trials.depth += 1
    try:
        yield
    finally:
        _trials.depth -= 1


class ClassLevel:
    """The attributes of a module's classes, the containers among them, and the `functools.lru_cache`s over methods.

    Tensors with data that a trial puts there are removed after it: the data may be made up. What a real call puts there
    stays, as in torch: other threads may use it. Caches over methods are emptied after each run that has filled them.
    """

    def __init__(self, parts: Sequence[object]) -> None:
        classes = dict.fromkeys(cls for kind in set(map(type, parts)) for cls in kind.__mro__)
        own = [cls for cls in classes if not str(cls.__module__).startswith(("torch.", "builtins"))]
        self._classes = [cls for cls in own if issubclass(cls, torch.nn.Module)]
        members = [_function_of(value) for cls in own for value in vars(cls).values()]
        self._caches: list[Any] = list(filter(is_cache, members))
        self._caches += [part for part in parts if is_copied_cache(part)]  # `self.table = lru_cache(self._table)`
        self._before: list[tuple[_Holder, dict[Any, Any]]] = []

    def begin(self) -> None:
        """Remember the state, if this is a trial."""
        self._before = []
        if not _trials.depth:
            return
        self._before += [(cls, dict(vars(cls))) for cls in self._classes]
        seen: set[int] = set()
        todo = [value for _, values in self._before for value in values.values() if type(value) in BUILTIN_CONTAINERS]
        while todo:
            container = todo.pop()
            if id(container) not in seen:
                seen.add(id(container))
                values = _items(container)
                self._before.append((container, values))
                todo += [value for value in values.values() if type(value) in BUILTIN_CONTAINERS]

    def end(self) -> None:
        """Remove the tensors of the trial, and empty the caches over methods."""
        for holder, before in self._before:
            now = _items(holder)
            new = [k for k, v in now.items() if before.get(k, _MISSING) is not v and _hold_data(_tensors(v))]
            if new:
                _put_back(holder, before, new)
        self._before = []
        for cache in self._caches:
            if cache.cache_info().misses:
                cache.cache_clear()


def _function_of(member: object) -> object:
    """A member of a class; of a property, its function."""
    return member.fget if isinstance(member, property) else member


def _items(holder: _Holder) -> dict[Any, Any]:
    if isinstance(holder, type):
        return dict(vars(holder))
    return dict(holder) if isinstance(holder, dict) else dict(enumerate(list(holder)))


def _put_back(holder: _Holder, before: dict[Any, Any], keys: list[Any]) -> None:
    """Undo what was written at `keys`. In a class or dict other threads may be writing at other keys."""
    if isinstance(holder, (type, dict)):
        for key in keys:
            _put_back_one(holder, key, key in before, before.get(key))
    elif (put := put_back_of(holder)) is not None:
        put(holder, before.values())


def _put_back_one(holder: type | dict[Any, Any], key: Any, was_there: bool, value: object) -> None:
    if isinstance(holder, dict):
        if was_there:
            holder[key] = value
        else:
            holder.pop(key, None)
    elif was_there:
        setattr(holder, key, value)
    elif key in vars(holder):
        delattr(holder, key)


def _tensors(value: object) -> list[torch.Tensor]:
    """The tensors among the parts of a value."""
    todo, seen, found = [value], set[int](), []
    while todo and len(seen) < _MOST_PARTS:
        part = todo.pop()
        if isinstance(part, torch.Tensor):
            found.append(part)
        elif id(part) not in seen and not isinstance(part, (type, torch.nn.Module)):
            seen.add(id(part))
            todo += inside(part)
    return found


def _hold_data(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether there are tensors, with data. A real call that uses one without raises (`_infer/kept_tensors.py`)."""
    return bool(tensors) and not any(map(_has_no_data, tensors))


def _has_no_data(tensor: torch.Tensor) -> bool:
    try:
        return _compat.has_meta_storage(tensor)
    except NotImplementedError:  # sparse tensors have no storage
        return tensor.is_meta
