"""Tensors that are not dense, of which runs without data do not know enough.

Without data a sparse tensor has no elements: under `FakeTensorMode` `_nnz()` is 0 and `values()` is empty (torch 2.13).
What follows from that is wrong, and no error says so.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as torch_tree

from .. import _compat


def is_dense(value: Any) -> bool:
    """Whether a value is no tensor, or one with an element for each index, as a JAX array has them."""
    if not isinstance(value, torch.Tensor):
        return True
    return value.layout == torch.strided and not value.is_nested and not value.is_quantized


class WatchDense(_compat.DispatchMode):
    """Notes operations whose results fake tensors do not tell, also where the function handles the exception."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_for_values = False
        self.met_others = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            result = self.operate(func, args, kwargs)
        except Exception:
            self.asked_for_values |= needs_values(func)
            raise
        self.met_others |= not all(map(is_dense, torch_tree.tree_leaves((args, kwargs, result))))
        return result


def needs_values(func: Any) -> bool:
    """Whether what an operation returns follows from values, not from shapes alone."""
    tags = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
    return any(tag in func.tags for tag in tags)
