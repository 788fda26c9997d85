"""Who owns the memory of a tensor, and how a storage can be given other memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch


def storage_uses(storage: torch.UntypedStorage) -> int:
    """How many owners memory has; none where only weak references are left.

    Before torch 2.10 `gc.get_objects()` has such storages. Anything else that is asked of one frees it twice.
    """
    return int(torch._C._storage_Use_Count(storage._cdata))


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage:
    """The memory behind a tensor, whatever its class."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.untyped_storage()


def _uses_with_a_view(function: Callable[[torch.Tensor], int]) -> int:
    tensor = torch.ones(2)
    before = function(tensor)
    view = tensor[1:]
    return function(tensor) - before - (view is tensor)


# From torch 2.10 a tensor that C++ refers to, as views and graphs do, owns a reference to its Python object.
_OWNS_PYTHON_OBJECT = _uses_with_a_view(sys.getrefcount) > 0


def is_owned_by_torch(tensor: torch.Tensor) -> bool:
    """Whether one of the references to a tensor's Python object is torch's own."""
    if not _OWNS_PYTHON_OBJECT:
        # Torch has a reference while only C++ refers to the tensor (`THPVariable_tryResurrect`), and no function tells.
        # It becomes the result of the next function that returns the tensor (`THPVariable_Wrap`), such as this one.
        torch._C._functorch._unwrap_for_grad(tensor, -1)
        return False
    return tensor._use_count() > 1  # type: ignore[attr-defined]


def learn_storage_layout(learn: Callable[[Any], bool], exchange: Callable[[Any, Any], bool]) -> bool:
    """Let the extension find out how this torch lays out tensors, by what it has to find, and try it.

    Torch has no function that gives a storage other memory (`UntypedStorage.share_memory_` does, but takes a file
    descriptor for each). False, and the extension knows nothing, if this torch is different from all known ones.
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
