"""The counters of in-place changes of tensors, which torch compares where a graph has saved a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def set_versions(tensors: Sequence[torch.Tensor], version: int) -> None:
    """Set the counters of tensors, which views of them share. Only where `can_set_versions`. Quickest for a tuple."""
    torch._C._autograd._unsafe_set_version_counter(tuple(tensors), (version,) * len(tensors))


def _can_set_versions() -> bool:
    """Whether torch has the function, for several tensors at once. Torch 2.6 has one for a single tensor."""
    tensors = [torch.zeros(()), torch.zeros(())]
    views = [tensor.view(1) for tensor in tensors]
    try:
        set_versions(tensors, 3)
    except (AttributeError, TypeError):
        return False
    return [view._version for view in views] == [3, 3]


can_set_versions = _can_set_versions()
