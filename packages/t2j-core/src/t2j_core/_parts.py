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

    Not found is what lies behind a function (its closure), a class (its attributes) or `__slots__`.
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
