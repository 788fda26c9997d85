"""Tensors that hide what they are: wrappers of `torch.func`, symbolic zeros, lazy conjugates, sparse gradients."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from .torch_func import in_transform

Gradient = TypeVar("Gradient", torch.Tensor, torch.Tensor | None)


def is_wrapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor belongs to a level of `torch.func`: a `GradTrackingTensor` or a `BatchedTensor`."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor inside all wrappers of `torch.func`."""
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def materialised(tensor: torch.Tensor) -> torch.Tensor:
    """A symbolic zero as numbers, a sparse gradient as a dense one; any other tensor unchanged.

    `_is_zerotensor` is false for the wrapper of a symbolic zero, so this looks at the tensor inside.
    """
    if tensor.layout != torch.strided:  # the gradient of `nn.Embedding(sparse=True)`
        return tensor.to_dense()
    if not unwrapped(tensor)._is_zerotensor():
        return tensor
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def with_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor.to(dtype)`, which takes as long as a small operation even if there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def as_cotangents(gradients: Sequence[Gradient]) -> list[Gradient]:
    """Gradients of torch as cotangents of JAX: dense, and conjugates. None stays."""
    if not in_transform() and _are_plain([g for g in gradients if g is not None]):
        return list(gradients)
    return [g if g is None else conj(materialised(g)) for g in gradients]


def _are_plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether all tensors are real and have memory: none is sparse or a symbolic zero. Outside of `torch.func`."""
    try:
        have_memory = all(map(torch.Tensor.data_ptr, tensors))
    except RuntimeError:  # no storage
        return False
    return have_memory and not any(dtype.is_complex for dtype in set(map(_dtype, tensors)))


_dtype: Callable[[torch.Tensor], torch.dtype] = operator.attrgetter("dtype")


def conj(tensor: torch.Tensor) -> torch.Tensor:
    """The conjugate, computed at once from the real and imaginary parts.

    In a batch of `torch.func.vmap`, `torch.conj` is lazy, and its imaginary part has no batching rule
    (`aten::_neg_view`); `torch.conj_physical` has none either (torch 2.13).
    """
    if not tensor.is_complex():
        return tensor
    tensor = tensor.resolve_conj()
    return torch.complex(tensor.real, -tensor.imag)
