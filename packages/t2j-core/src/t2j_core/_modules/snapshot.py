"""A snapshot of the attributes and containers of a module, which are put back after each call.

Values are not compared before they are put back: containers hold tensors, whose `==` computes.
"""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from .array_contents import ArrayContents
from .class_level import ClassLevel
from .parts import BUILTIN_CONTAINERS, Slots, attributes_of, parts, slots_of
from .put_back import PutBack, content_of, put_back_of


class Snapshot:
    """The state of a module's attributes and containers at one time, without that of tensors.

    A large model has thousands of containers, most of them empty, and `restore` runs at every call. So containers are
    grouped by kind, and each kind is put back by one loop in C.
    """

    def __init__(self, module: torch.nn.Module, shared: frozenset[int] = frozenset()) -> None:
        """Take a snapshot. Parts whose ids are in `shared` belong to other modules, and are left alone."""
        self._attributes: list[dict[str, Any]] = []
        self._empty: list[Any] = []
        self._dicts: list[dict[Any, Any]] = []
        self._lists: list[list[Any]] = []
        self._others: list[tuple[PutBack, Any, Any]] = []
        self._slots: list[tuple[Slots, dict[str, Any]]] = []
        self._tensors: list[torch.Tensor] = []
        self._arrays = ArrayContents()
        own = [part for part in parts(module) if id(part) not in shared]
        for part in own:
            self._add(part)
        self.class_level = ClassLevel(own)
        self._attributes_before = list(map(dict, self._attributes))
        self._sizes = list(map(len, self._attributes))
        self._dicts_before = list(map(dict, self._dicts))
        self._lists_before = list(map(tuple, self._lists))
        self._versions = [tensor._version for tensor in self._tensors]
        self._modules = list(module.modules())
        self._classes = list(map(type, self._modules))

    def _add(self, part: object) -> None:
        if isinstance(part, torch.Tensor):
            if not part.is_meta and not part.is_inference():
                self._tensors.append(part)
            return
        if (attributes := attributes_of(part)) is not None:
            self._attributes.append(attributes)
        if (slots := slots_of(part)) is not None:
            self._slots.append((slots, slots.values()))
        self._arrays.add(part)
        if type(part) in BUILTIN_CONTAINERS and not part:
            self._empty.append(part)
        elif type(part) is dict:
            self._dicts.append(part)
        elif type(part) is list:
            self._lists.append(part)
        elif (put := put_back_of(part)) is not None:
            self._others.append((put, part, content_of(part)))

    @functools.cached_property
    def _ids(self) -> frozenset[int]:
        others = (container for _, container, _ in self._others)
        slotted = (slots.part for slots, _ in self._slots)
        return frozenset(map(id, (*self._attributes, *self._empty, *self._dicts, *self._lists, *slotted, *others)))

    def places(self, ids: Iterable[int]) -> Iterator[tuple[Any, Any, int]]:
        """Where objects with these ids are in attributes, slots, dicts and lists: container, key, id."""
        wanted = frozenset(ids)
        yield from ((container, key, id(value)) for container, key, value in self._values() if id(value) in wanted)

    def tuples(self, ids: Iterable[int]) -> Iterator[tuple[Any, Any, tuple[Any, ...]]]:
        """Where there are tuples that hold objects with these ids, directly or in tuples: container, key, tuple."""
        wanted = frozenset(ids)
        yield from (place for place in self._values() if _leads_to(place[2], wanted))

    def _values(self) -> Iterator[tuple[Any, Any, Any]]:
        pairs: list[tuple[Any, Any]] = [*zip(self._attributes, self._attributes_before, strict=True)]
        pairs += zip(self._dicts, self._dicts_before, strict=True)
        pairs += zip(self._lists, self._lists_before, strict=True)
        for container, before in [*pairs, *self._slots, *((c, b) for _, c, b in self._others)]:
            if isinstance(container, (dict, list, Slots)):
                items = before.items() if isinstance(before, dict) else enumerate(before)
                yield from ((container, key, value) for key, value in items)

    def restore(self) -> bool:
        """Put everything back. False if something has changed that cannot be put back; the module is then discarded."""
        _each(dict.update, self._attributes, self._attributes_before)
        if list(map(len, self._attributes)) != self._sizes:
            self._remove_attributes()
        if any(self._empty):
            for container in self._empty:
                container.clear()
        _each(dict.clear, self._dicts)
        _each(dict.update, self._dicts, self._dicts_before)
        _each(list.__setitem__, self._lists, itertools.repeat(slice(None)), self._lists_before)
        for put, container, before in self._others:
            put(container, before)
        for slots, values in self._slots:
            slots.put_back(values)
        self.class_level.end()
        is_written = list(map(_version, self._tensors)) != self._versions or self._arrays.is_written()
        return not is_written and not any(map(operator.is_not, map(type, self._modules), self._classes))

    def _remove_attributes(self) -> None:
        for attributes, before in zip(self._attributes, self._attributes_before, strict=True):
            for name in attributes.keys() - before.keys():
                del attributes[name]

    def apart(self, output: object) -> object:
        """`output` with copies of those containers and objects that `restore` would change."""
        return output if isinstance(output, torch.Tensor) else self._apart(output, {}, 0)

    def _apart(self, output: object, done: dict[int, object], depth: int) -> object:
        if isinstance(output, (torch.Tensor, torch.nn.Module)) or depth > _DEEPEST:
            return output
        if id(output) in done:
            return done[id(output)]
        if type(output) is tuple:
            return tuple(self._apart(item, done, depth + 1) for item in output)
        own, attributes = output, attributes_of(output)
        if id(output) in self._ids or (attributes is not None and id(attributes) in self._ids):
            own = copy.copy(output)
            attributes = attributes_of(own)
        done[id(output)] = own  # before its parts, which may refer to it
        for container in (attributes, slots_of(own), own if isinstance(own, (dict, list)) else None):
            if container is not None:
                for key, item in _items(container):
                    if (replaced := self._apart(item, done, depth + 1)) is not item:
                        container[key] = replaced
        return own


def _leads_to(value: object, ids: frozenset[int]) -> bool:
    if not isinstance(value, tuple):
        return False
    parts_of_value = tuple.__iter__(value)  # `__iter__` of a subclass may raise
    return any(id(part) in ids or _leads_to(part, ids) for part in parts_of_value)


def _items(container: Slots | dict[Any, Any] | list[Any]) -> list[tuple[Any, Any]]:
    if isinstance(container, Slots):
        return list(container.values().items())
    return list(container.items() if isinstance(container, dict) else enumerate(container))


_DEEPEST = 100
_version: Callable[[torch.Tensor], int] = operator.attrgetter("_version")


def _each(function: Callable[..., object], *columns: Iterable[Any]) -> None:
    """Call `function` on each row, in C."""
    collections.deque(map(function, *columns), maxlen=0)
