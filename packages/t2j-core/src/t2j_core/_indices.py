"""32-bit indices, which is what JAX has while x64 is off, where torch's kernels for the CPU read them as 64-bit ones.

`torch.gather` on the CPU has a quick path for `dim=0` and an index that is expanded along all other dimensions, such as
`index[:, None].expand_as(x)`. It reads an int32 index as int64 (torch 2.13: `can_use_expanded_index_path` in
`TensorAdvancedIndexing.cpp`). The result is wrong, without an error, and memory behind the index is read. The gradients
of `scatter`, `scatter_add` and `scatter_reduce` are gathers of that kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FUNCTIONS = frozenset(
    {
        *(torch.gather, torch.scatter, torch.scatter_add, torch.scatter_reduce),
        *(torch.Tensor.gather, torch.Tensor.scatter, torch.Tensor.scatter_add, torch.Tensor.scatter_reduce),
        *(torch.Tensor.scatter_, torch.Tensor.scatter_add_, torch.Tensor.scatter_reduce_),
    }
)
_NAMES = frozenset(f"aten::{function.__name__}" for function in _FUNCTIONS)
_INDEX = 2  # its position: after the tensor and the dimension


def expands_index(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation of a dispatch mode has an int32 index that is expanded."""
    if func._schema.name not in _NAMES or len(args) <= _INDEX or not isinstance(args[_INDEX], torch.Tensor):
        return False
    index = args[_INDEX]
    return index.dtype == torch.int32 and any(
        stride == 0 and size > 1 for stride, size in zip(index.stride(), index.shape, strict=True)
    )


class _LongIndices(TorchFunctionMode):
    """Makes the indices of `gather` and `scatter` int64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FUNCTIONS:
            args = tuple(_long(a) if i == _INDEX else a for i, a in enumerate(args))
            kwargs = {name: _long(value) if name == "index" else value for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _long(index: Any) -> Any:
    return index.long() if isinstance(index, torch.Tensor) and index.dtype == torch.int32 else index


def with_long_indices(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, whose gathers and scatters get 64-bit indices."""

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _LongIndices():
            return fn(*args, **kwargs)

    return run
