"""How much memory of tensors a function refers to.

The garbage collector of another thread may be taking the function apart: a finalizer has made the reference to it, and
JAX lets go of the GIL where it frees a program. Python 3.11 crashes where it iterates over the attributes of an object
that has lost some of them (`dictiter_iternextvalue` in Objects/dictobject.c). So the collector tells what they are.
"""

from __future__ import annotations

import gc
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch

_MOST_PARTS = 10_000
_NOT_PARTS = (type, types.ModuleType, types.FrameType, str, int, float)
"""They refer to much that is not the function's, or to nothing."""


def nbytes_behind(call: Callable[..., Any]) -> int:
    """The bytes of the tensors that are found among the first parts of a function and of what they refer to."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    rest: list[object] = [call]
    while rest and len(seen) < _MOST_PARTS:
        part = rest.pop()
        if id(part) in seen or isinstance(part, _NOT_PARTS) or _is_of_jax(part):
            continue
        seen.add(id(part))
        if isinstance(part, torch.Tensor):
            storages.update(_storage_of(part))
        else:
            rest.extend(_leads_to(part))
    return sum(storages.values())


def _storage_of(tensor: torch.Tensor) -> dict[int, int]:
    try:
        storage = tensor.untyped_storage()
        return {storage._cdata: 0 if tensor.is_meta else storage.nbytes()}
    except Exception:  # tensors without storage
        return {}


def _leads_to(part: object) -> Iterable[object]:
    if isinstance(part, types.FunctionType):  # not its globals, which it shares with its module
        cells = [cell.cell_contents for cell in part.__closure__ or () if _is_filled(cell)]
        return [*cells, *(part.__defaults__ or ()), *(part.__kwdefaults__ or {}).values()]
    return gc.get_referents(part)


def _is_of_jax(part: object) -> bool:
    """Whether it is an object of JAX, whose caches lead to all other functions."""
    return str(type(part).__module__).partition(".")[0] in ("jax", "jaxlib")


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
