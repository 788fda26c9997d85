"""How many references Python has to a tensor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch


def references(tensors: Sequence[torch.Tensor]) -> list[int]:
    """The reference counts of the objects, without what graphs add to them."""
    counts = map(sys.getrefcount, tensors)
    if not _OWNERS_HAVE_A_REFERENCE:
        return list(counts)
    return [count - (owners > 1) for count, owners in zip(counts, map(_owners, tensors), strict=True)]


def _owners_have_a_reference() -> bool:
    """Whether the object has one more reference while C++ owns the tensor too, as a graph does (torch 2.13)."""
    tensor = torch.zeros((), requires_grad=True)
    before = sys.getrefcount(tensor)
    with torch.enable_grad():
        graph = tensor.exp()
    has_more = sys.getrefcount(tensor) > before
    del graph
    return has_more


_owners: Callable[[torch.Tensor], int] = torch.Tensor._use_count  # type: ignore[attr-defined]
_OWNERS_HAVE_A_REFERENCE = _owners_have_a_reference()
