"""Whether something refers to memory by its address, as NumPy arrays do, so that the memory cannot be replaced."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import torch

from .. import _compat


def has_pointers(storage: torch.UntypedStorage) -> bool:
    """Whether something that the garbage collector does not see holds a tensor over `storage`.

    The array of `tensor.numpy()` refers to its tensor, and NumPy arrays do not implement `tp_traverse`. So a tensor
    with more references than the collector and the running frames account for is held by an array, or the like.
    """
    if storage.device.type != "cpu":  # NumPy has no arrays on a GPU
        return False
    tensors = tuple([t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and _lies_in(t, storage)])
    return any(count > 0 for count in _unseen_references(tensors).values())


def _lies_in(tensor: torch.Tensor, storage: torch.UntypedStorage) -> bool:
    try:
        return bool(tensor.untyped_storage()._cdata == storage._cdata)
    except Exception:  # tensors without storage
        return False


def _unseen_references(tensors: tuple[torch.Tensor, ...]) -> dict[int, int]:
    """By `id`, how many references to a tensor neither the collector nor the running frames account for."""
    unseen = {}
    for i in range(len(tensors)):  # a variable for the tensor would be one reference more
        owned = _compat.is_owned_by_torch(tensors[i])  # before the count, which it may change
        unseen[id(tensors[i])] = sys.getrefcount(tensors[i]) - _REFERENCES_HERE - owned
    frames = list(_frames_of_other_threads())  # the collector does not see running frames
    seen = [_own_locals(frame) for frame in frames]
    for holder in gc.get_referrers(*tensors):  # CPython 3.13 also finds the tuple of arguments
        if holder is not tensors and not any(holder is frame for frame in frames):
            seen.append(gc.get_referents(holder))
    for address in map(id, itertools.chain.from_iterable(seen)):
        if address in unseen:
            unseen[address] -= 1
    return unseen


def _frames_of_other_threads() -> Iterator[types.FrameType]:
    """The running frames of other threads. Those of this thread do not refer to what the function keeps."""
    for thread, innermost in sys._current_frames().items():
        frame: types.FrameType | None = innermost if thread != threading.get_ident() else None
        while frame is not None:
            yield frame
            frame = frame.f_back


def _own_locals(frame: types.FrameType) -> list[Any]:
    """The values that a frame itself refers to. Variables of closures are in cells, which the collector sees."""
    names = set(frame.f_code.co_varnames).difference(frame.f_code.co_cellvars)
    return [value for name, value in frame.f_locals.items() if name in names]


def _count_references() -> int:
    """The `sys.getrefcount` of an object that only a list refers to: it differs between versions of Python."""
    items = [object()]
    return sys.getrefcount(items[0])


_REFERENCES_HERE = _count_references()
