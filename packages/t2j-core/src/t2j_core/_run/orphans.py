"""Functions whose wrapper is gone, of which a cache of JAX may be the last owner.

JAX keeps what it compiles for an eager `scan`, `cond` or `while_loop` in a cache of 4,096 entries that own their
programs, and jax 0.6 keeps loops of compiled programs (`forget_eager_primitives` and `keeps_loops` in `_compat.py`).
No function can be taken out of a cache alone, so all of it is emptied once many functions, or large ones, have lost
their wrapper. Programs of the user's own may be what keeps them: then nothing is freed, and the next time takes more
of them.
"""

from __future__ import annotations

import collections
import functools
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch

from .. import _compat
from .._modules.parts import inside
from . import in_flight

_MOST = 8
_MOST_BYTES = 1 << 28
_MOST_PARTS = 10_000


_bereaved: collections.deque[weakref.ref[Origin]] = collections.deque()


class Origin:
    """What all functions derived from one own together, and nothing else owns: it is there as long as one of them."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    @functools.cached_property
    def nbytes(self) -> int:
        """How much memory of torch's own the function keeps."""
        try:
            return _nbytes_behind(self._call)
        except Exception:  # objects of the user's, which may do anything
            return 0


class Signatures(dict[Any, Any]):
    """The functions of one wrapper by their signatures. When the wrapper goes they are watched."""

    def __del__(
        self, note: Any = _bereaved.extend, refer: Any = weakref.ref, let_go: Any = in_flight.let_go
    ) -> None:  # at any moment, at exit too
        note([refer(fn.origin) for fn in self.values()])
        let_go()


_patience = {"count": _MOST, "bytes": _MOST_BYTES}


def let_go() -> None:
    """Empty the cache of JAX if there are many orphans. Called where a new function is about to be compiled."""
    if not _bereaved:
        return
    count, nbytes = _orphans()
    if count < _patience["count"] and nbytes < _patience["bytes"]:
        return
    _compat.forget_eager_primitives()
    count, nbytes = _orphans()
    _patience.update(count=max(_MOST, 2 * count), bytes=max(_MOST_BYTES, 2 * nbytes))


def _orphans() -> tuple[int, int]:
    """How many there are, and how many bytes they keep."""
    count = nbytes = 0
    for _ in range(len(_bereaved)):
        try:
            reference = _bereaved.popleft()
        except IndexError:  # another thread looks after them too
            break
        origin = reference()
        if origin is not None:
            _bereaved.append(reference)
            count += 1
            nbytes += origin.nbytes
    return count, nbytes


def _nbytes_behind(call: Callable[..., Any]) -> int:
    """The bytes of the tensors that a function refers to, as far as they are found quickly."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    rest: list[Any] = [call]
    while rest and len(seen) < _MOST_PARTS:
        part = rest.pop()
        if id(part) in seen or isinstance(part, (type, types.ModuleType, str, int, float)):
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


def _leads_to(part: Any) -> Iterable[Any]:
    if isinstance(part, types.FunctionType):  # not its globals, which are everybody's
        cells = [cell.cell_contents for cell in part.__closure__ or () if _is_filled(cell)]
        return [*cells, *(part.__defaults__ or ()), *(part.__kwdefaults__ or {}).values()]
    if isinstance(part, types.MethodType):
        return [part.__func__, *inside(part)]
    return inside(part)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
