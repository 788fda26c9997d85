"""What a module leads to: its submodules, and the containers, objects and tensors that these hold."""

from __future__ import annotations

import collections
import enum
import functools
import logging
import types
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
PLAIN = frozenset((dict, list, set, collections.deque, collections.OrderedDict, collections.defaultdict))


def parts(module: torch.nn.Module) -> Iterator[Any]:
    """Every container, object and tensor that a module leads to, once: itself, its submodules, what those hold.

    Not found is what lies behind a function (its closure) or a class (its attributes).
    """
    seen: dict[int, Any] = {}  # refers to the parts, so that no other object gets the id of one
    todo: list[Any] = list(module.modules())  # modules of TorchScript do not lead to their submodules
    while todo:
        part = todo.pop()
        if type(part) in _SKIPPED or id(part) in seen or isinstance(part, _SHARED_KINDS):
            continue
        seen[id(part)] = part
        yield part
        if not isinstance(part, torch.Tensor):
            todo.extend(inside(part))


def inside(part: Any) -> Iterable[Any]:
    """What an object itself refers to: the values of its attributes, and what it contains."""
    found: list[Any] = list((attributes_of(part) or {}).values())
    if (slots := slots_of(part)) is not None:
        found += slots.values().values()
    if isinstance(part, dict):
        found += dict.values(part)
    elif isinstance(part, _SEQUENCES):  # of the kind itself: a subclass may give others, or raise
        kind = next(kind for kind in _SEQUENCES if isinstance(part, kind))
        found.extend(kind.__iter__(part))
    elif isinstance(part, functools.partial):
        found += (part.func, part.args, part.keywords)
    elif isinstance(part, types.MethodType):  # such as a hook of an object that records
        found = [part.__self__]
    return found


def attributes_of(part: Any) -> dict[str, Any] | None:
    """The dictionary of an object's attributes, if it has one of its own."""
    if type(part) in PLAIN or isinstance(part, types.MethodType):  # an `OrderedDict` has one, but no use for it
        return None
    attributes = getattr(part, "__dict__", None)
    return attributes if type(attributes) is dict else None


class Slots:
    """The attributes of an object that its class has named in `__slots__`."""

    def __init__(self, part: Any, members: dict[str, Any]) -> None:
        self.part = part
        self._members = members  # descriptors, which a frozen dataclass does not refuse

    def values(self) -> dict[str, Any]:
        """Those that are set, by name."""
        part = self.part
        found = ((name, _value_of(member, part)) for name, member in self._members.items())
        return {name: value for name, value in found if value is not _UNSET}

    def __setitem__(self, name: str, value: Any) -> None:
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


def _value_of(member: Any, part: Any) -> Any:
    try:
        return member.__get__(part)
    except AttributeError:
        return _UNSET


def slots_of(part: Any) -> Slots | None:
    """The slots of an object, if its classes name any."""
    if type(part) in PLAIN or isinstance(part, torch.Tensor):
        return None
    members = {
        name: member
        for cls in reversed(type(part).__mro__)
        if "__slots__" in vars(cls)
        for name, member in vars(cls).items()
        if isinstance(member, types.MemberDescriptorType)
    }
    return Slots(part, members) if members else None
