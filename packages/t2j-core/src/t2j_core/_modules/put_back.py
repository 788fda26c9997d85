"""Containers of a module: their content, and how it is put back.

The methods are those of the built-in classes, because a subclass may override them: `Counter.update` adds up.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any

PutBack = Callable[[Any, Any], None]
"""A function that gives a container its earlier content."""


def put_back_of(container: object) -> PutBack | None:
    """How the content of a container is put back; None if it is not a container that can be changed."""
    return next((put for kind, put in _PUT if issubclass(type(container), kind)), None)


def content_of(container: Any) -> dict[Any, Any] | tuple[Any, ...]:
    """A copy of the content of a dict, list, deque or set."""
    return dict(_dict_of(container).items(container)) if isinstance(container, dict) else tuple(container)


def _dict_of(container: dict[Any, Any]) -> type[dict[Any, Any]]:
    return collections.OrderedDict if isinstance(container, collections.OrderedDict) else dict


def _put_dict(container: dict[Any, Any], before: Mapping[Any, Any]) -> None:
    kind = _dict_of(container)
    kind.clear(container)
    for key, value in before.items():
        kind.__setitem__(container, key, value)


def _put_list(container: list[Any], before: Iterable[Any]) -> None:
    list.__setitem__(container, slice(None), before)


def _put_deque(container: collections.deque[Any], before: Iterable[Any]) -> None:
    collections.deque.clear(container)
    collections.deque.extend(container, before)


def _put_set(container: set[Any], before: Iterable[Any]) -> None:
    set.clear(container)
    set.update(container, before)


_PUT: tuple[tuple[type, PutBack], ...] = (
    (dict, _put_dict),
    (list, _put_list),
    (collections.deque, _put_deque),
    (set, _put_set),
)
