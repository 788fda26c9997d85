"""How tensors cross between XLA and a flat function: as they are, converted, or as bytes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import _compat
from .._base.dtypes import row_of_jax, row_of_torch
from .._signature.signature import Leaf, Signature
from .flat_function import FlatFunction

_UINT8 = (1, 8)  # DLPack's type code and number of bits


def wire(leaf: Leaf) -> tuple[int, int] | None:
    """DLPack's dtype of an array that crosses as bytes; None for one that crosses as it is."""
    return _UINT8 if _compat.crosses_as_bytes(row_of_jax(leaf.dtype).torch) else None


def crosses_unchanged(signature: Signature) -> bool:
    """Whether no operand or result needs to be converted."""
    operands = signature.operands
    return all(wire(leaf) is None and row_of_jax(leaf.dtype).torch == leaf.torch_dtype for leaf in operands) and all(
        wire(leaf) is None for leaf in signature.outputs.leaves
    )


def converting(call: FlatFunction, signature: Signature) -> FlatFunction:
    """`call` on tensors as XLA has them, with results as XLA takes them."""
    arriving = _conversions(signature.operands)
    as_bytes = _sent_as_bytes(signature)

    def run(*tensors: torch.Tensor, **extra: Any) -> tuple[torch.Tensor, ...]:
        data = list(tensors)
        for index, convert in arriving:
            data[index] = convert(data[index])
        results = call(*data, **extra)
        if as_bytes:
            results = tuple(r.view(torch.uint8) if i in as_bytes else r for i, r in enumerate(results))
        return results

    return run


def with_buffers_as_out(call: FlatFunction, signature: Signature) -> FlatFunction:
    """`call`, which takes `out=`, as a function of one tensor per operand and one per result buffer."""
    n, outputs, as_bytes = len(signature.operands), signature.outputs, _sent_as_bytes(signature)

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        buffers = list(tensors[n:])
        for index in as_bytes:
            buffers[index] = buffers[index].view(outputs.leaves[index].torch_dtype)
        return call(*tensors[:n], out=outputs.unflatten(buffers))

    return run


def _sent_as_bytes(signature: Signature) -> list[int]:
    return [i for i, leaf in enumerate(signature.outputs.leaves) if wire(leaf) is not None]


def _conversions(operands: Sequence[Leaf]) -> list[tuple[int, Callable[[torch.Tensor], torch.Tensor]]]:
    steps: list[tuple[int, Callable[[torch.Tensor], torch.Tensor]]] = []
    for index, leaf in enumerate(operands):
        stored = row_of_jax(leaf.dtype).torch
        if wire(leaf) is not None:
            steps.append((index, operator.methodcaller("view", stored)))
        if leaf.torch_dtype != stored:
            row_of_torch(leaf.torch_dtype)  # raises for a dtype that JAX lacks
            steps.append((index, operator.methodcaller("to", leaf.torch_dtype)))
    return steps
