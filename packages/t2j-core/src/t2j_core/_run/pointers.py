"""Whether something refers to memory by its address, as NumPy arrays do, so that it cannot be moved."""

from __future__ import annotations

import gc
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import torch

from .. import _compat


def has_pointers(storage: torch.UntypedStorage) -> bool:
    """Whether something holds a tensor over `storage` that the garbage collector does not see, as NumPy arrays do.

    `tensor.numpy()` refers to its tensor, and NumPy arrays do not tell the collector what they refer to. So a tensor
    with more references than the collector and the running frames account for is held by one, or something like it.
    """
    if storage.device.type != "cpu":  # NumPy has no arrays there
        return False
    tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and _lies_in(t, storage)]
    return any(_unseen_references(tensors, i) > 0 for i in range(len(tensors)))


def _lies_in(tensor: torch.Tensor, storage: torch.UntypedStorage) -> bool:
    try:
        return bool(tensor.untyped_storage()._cdata == storage._cdata)
    except Exception:  # tensors without storage
        return False


def _unseen_references(tensors: list[torch.Tensor], index: int) -> int:
    frames = list(_frames_of_other_threads())  # the collector does not know frames that run
    owned = _compat.is_owned_by_torch(tensors[index])  # which comes first, as it may give up what it tells of
    count = sys.getrefcount(tensors[index]) - _REFERENCES_HERE - owned
    address = id(tensors[index])
    for holder in gc.get_referrers(tensors[index]):
        if holder is not tensors and not any(holder is frame for frame in frames):
            count -= sum(id(item) == address for item in gc.get_referents(holder))
    return count - sum(id(value) == address for frame in frames for value in _own_locals(frame))


def _frames_of_other_threads() -> Iterator[types.FrameType]:
    """Those of this thread called the function, and cannot refer to what it kept by a local variable."""
    for thread, innermost in sys._current_frames().items():
        frame: types.FrameType | None = innermost if thread != threading.get_ident() else None
        while frame is not None:
            yield frame
            frame = frame.f_back


def _own_locals(frame: types.FrameType) -> list[Any]:
    """The values that a frame itself refers to. Those shared with closures are in cells, which the collector sees."""
    names = set(frame.f_code.co_varnames).difference(frame.f_code.co_cellvars)
    return [value for name, value in frame.f_locals.items() if name in names]


def _count_references() -> int:
    """What `sys.getrefcount` says of an element of a list, which differs between versions of Python."""
    items = [object()]
    return sys.getrefcount(items[0])


_REFERENCES_HERE = _count_references()
