"""References to tensors and their memory, and how a storage is given other memory."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch


def storage_uses(storage: torch.UntypedStorage) -> int:
    """How many owners memory has; 0 if only weak references are left.

    Before torch 2.10 `gc.get_objects()` returns such storages. Any other method of one frees the memory twice.
    """
    return int(torch._C._storage_Use_Count(storage._cdata))


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage:
    """The storage of a tensor of any class."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.untyped_storage()


def _uses_with_a_view(function: Callable[[torch.Tensor], int]) -> int:
    tensor = torch.ones(2)
    before = function(tensor)
    view = tensor[1:]
    return function(tensor) - before - (view is tensor)


# Since torch 2.10 a tensor that C++ refers to, as views and graphs do, owns a reference to its Python object
# (https://github.com/pytorch/pytorch/pull/167564).
_OWNS_PYTHON_OBJECT = _uses_with_a_view(sys.getrefcount) > 0


def is_owned_by_torch(tensor: torch.Tensor) -> bool:
    """Whether one of the references to a tensor's Python object is torch's own."""
    if not _OWNS_PYTHON_OBJECT:
        # Torch owns a reference while only C++ refers to the tensor (`THPVariable_tryResurrect` in
        # torch/csrc/autograd/python_variable.cpp, https://github.com/pytorch/pytorch/pull/56017). Nothing shows that.
        # It gives it away with the next function that returns the tensor (`THPVariable_Wrap`), such as this one.
        torch._C._functorch._unwrap_for_grad(tensor, -1)
        return False
    return tensor._use_count() > 1  # type: ignore[attr-defined]


Sample = tuple[torch.Tensor, int, int, int, int]
"""A tensor, the addresses of its `TensorImpl`, its `StorageImpl` and its data, and the use count of the storage."""


def learn_storage_layout(
    learn: Callable[[tuple[Sample, ...]], bool], exchange: Callable[[torch.UntypedStorage, torch.UntypedStorage], bool]
) -> bool:
    """Let the extension learn from samples how this torch lays out tensors, and try what it has learnt.

    Torch has no function that gives a storage other memory (`UntypedStorage.share_memory_` does, but takes a file
    descriptor for each). False if this torch differs from all known ones; the extension has then learnt nothing.
    """
    tensors = [torch.arange(8.0), torch.arange(5)]
    views = [tensors[0][1:], tensors[0][2:]]  # one storage has three users, the other one
    storages = [tensor.untyped_storage()._cdata for tensor in tensors]
    uses = [int(torch._C._storage_Use_Count(storage)) for storage in storages]
    samples = zip(tensors, (t._cdata for t in tensors), storages, (t.data_ptr() for t in tensors), uses, strict=True)
    if learn(tuple(samples)):
        first, second = torch.zeros(4), torch.ones(4)
        exchange(first.untyped_storage(), second.untyped_storage())
        if (first == 1).all() and (second == 0).all() and len(views) == 2:
            return True
    learn(())
    return False
