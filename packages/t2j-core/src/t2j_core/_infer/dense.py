"""What runs without data cannot show: the elements of tensors that are not dense, and results that depend on values.

Without data a sparse tensor has no elements: under `FakeTensorMode` `_nnz()` is 0 and `values()` is empty (torch 2.13,
https://github.com/pytorch/pytorch/issues/113589). What a function computes from that is wrong, without an error.
"""

from __future__ import annotations

import torch

ALWAYS_DENSE = "tensors without data are always dense"


def is_dense(value: object) -> bool:
    """Whether a tensor has an element for each index, as JAX arrays have. True for what is not a tensor."""
    if not isinstance(value, torch.Tensor):
        return True
    return value.layout == torch.strided and not value.is_nested and not value.is_quantized


def needs_values(func: torch._ops.OpOverload) -> bool:
    """Whether the result of an operator, or its shape, depends on values."""
    tags = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
    return any(tag in func.tags for tag in tags)
