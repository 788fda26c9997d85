"""The parts of a module: its submodules, and the containers, objects and tensors that these refer to."""

from __future__ import annotations

import collections
import enum
import functools
import logging
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch

_ATOMS = (
    *(int, float, complex, str, bytes, bool, type(None), type(Ellipsis), range, slice),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
)
_SHARED_KINDS = (  # `copy.deepcopy` returns them
    *(type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, enum.Enum, logging.Logger),
)
_SKIPPED = frozenset((*_ATOMS, *_SHARED_KINDS))
_SEQUENCES: tuple[Any, ...] = (list, tuple, set, frozenset, collections.deque)
BUILTIN_CONTAINERS = frozenset((dict, list, set, collections.deque, collections.OrderedDict, collections.defaultdict))


def parts(module: torch.nn.Module) -> Iterator[Any]:
    """Every container, object and tensor that a module refers to, once: itself, its submodules, what those refer to.

    It does not look into functions (their closures) or classes (their attributes).
    """
    seen: dict[int, Any] = {}  # keeps the parts alive, so that no other object gets the id of one
    todo: list[Any] = list(module.modules())  # modules of TorchScript do not refer to their submodules
    while todo:
        part = todo.pop()
        if type(part) in _SKIPPED or id(part) in seen or isinstance(part, _SHARED_KINDS):
            continue
        seen[id(part)] = part
        yield part
        if not isinstance(part, torch.Tensor):
            todo.extend(inside(part))


def inside(part: object) -> Iterable[Any]:
    """What an object refers to directly: the values of its attributes, and what it contains."""
    found: list[Any] = list((attributes_of(part) or {}).values())
    if (slots := slots_of(part)) is not None:
        found += slots.values().values()
    if isinstance(part, dict):
        found += dict.values(part)
    elif isinstance(part, _SEQUENCES):  # not of the subclass, which may return others, or raise
        kind = next(kind for kind in _SEQUENCES if isinstance(part, kind))
        found.extend(kind.__iter__(part))
    elif isinstance(part, functools.partial):
        found += (part.func, part.args, part.keywords)
    elif isinstance(part, types.MethodType):  # such as a hook that is a method of a recorder
        found = [part.__self__]
    return found


def attributes_of(part: object) -> dict[str, Any] | None:
    """The `__dict__` of an object, if it has one."""
    # An `OrderedDict` has one, which stays empty.
    if type(part) in BUILTIN_CONTAINERS or isinstance(part, types.MethodType):
        return None
    attributes = getattr(part, "__dict__", None)
    return attributes if type(attributes) is dict else None


class Slots:
    """The attributes of an object that its class has named in `__slots__`."""

    def __init__(self, part: object, members: dict[str, types.MemberDescriptorType]) -> None:
        self.part = part
        self._members = members  # unlike `setattr`, a frozen dataclass does not refuse them

    def values(self) -> dict[str, Any]:
        """Those that are set, by name."""
        part = self.part
        found = ((name, _value_of(member, part)) for name, member in self._members.items())
        return {name: value for name, value in found if value is not _UNSET}

    def __setitem__(self, name: str, value: object) -> None:
        self._members[name].__set__(self.part, value)

    def put_back(self, before: dict[str, Any]) -> None:
        """Set those of `before`, and delete the others."""
        now = self.values()
        for name in now.keys() - before.keys():
            self._members[name].__delete__(self.part)
        for name, value in before.items():
            if now.get(name, _UNSET) is not value:
                self[name] = value


_UNSET = object()


def _value_of(member: types.MemberDescriptorType, part: object) -> Any:
    try:
        return member.__get__(part)
    except AttributeError:
        return _UNSET


_without_slots: weakref.WeakSet[type] = weakref.WeakSet()
"""Classes that name no slots: most of them, and their outputs are looked through at every call."""


def slots_of(part: object) -> Slots | None:
    """The slots of an object, if its classes name any."""
    kind = type(part)
    if kind in BUILTIN_CONTAINERS or isinstance(part, torch.Tensor) or kind in _without_slots:
        return None
    members = dict(_members_of(kind))
    if members:
        return Slots(part, members)
    _without_slots.add(kind)
    return None


def _members_of(kind: type) -> Iterator[tuple[str, types.MemberDescriptorType]]:
    for cls in reversed(kind.__mro__):
        if "__slots__" in vars(cls):
            for name, member in vars(cls).items():
                if isinstance(member, types.MemberDescriptorType):
                    yield name, member
