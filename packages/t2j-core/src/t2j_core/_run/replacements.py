"""Operations that can write their result into given memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

Write = Callable[[tuple[Any, ...], dict[str, Any], torch.Tensor], torch.Tensor | None]
"""Run an operation on its arguments so that the result lies in a tensor, and return it; None if it does not fit."""


def replacement_of(operation: OpOverload, arguments: Sequence[Any]) -> Write | None:
    """What writes the result of an operation with such arguments (see `producers.kinds`), with the same bits."""
    if operation is torch.ops.aten.embedding_dense_backward.default:
        return _write_embedding_gradient if _sums_in_order(arguments) else None
    return _OWN.get(operation) or _out_overload(operation)


@functools.cache
def _out_overload(operation: OpOverload) -> Write | None:
    """The overload with the same arguments plus one `out`."""
    schema = operation._schema
    if len(schema.returns) != 1 or schema.is_mutable or any(r.alias_info for r in schema.returns):
        return None
    wanted = [(a.name, str(a.type)) for a in schema.arguments]
    for name in operation.overloadpacket.overloads():
        overload = getattr(operation.overloadpacket, name)
        outs = [a.name for a in overload._schema.arguments if a.is_out]
        if len(outs) == 1 and [(a.name, str(a.type)) for a in overload._schema.arguments if not a.is_out] == wanted:
            return None if _copies(overload) else functools.partial(_write, overload, outs[0])
    return None


def _copies(overload: OpOverload) -> bool:
    """Whether the overload makes its result elsewhere and copies it: torch has generated it (torchgen/gen.py)."""
    return torch.Tag.generated in overload.tags


def _write(
    overload: OpOverload, out_name: str, args: tuple[Any, ...], kwargs: dict[str, Any], place: torch.Tensor
) -> torch.Tensor:
    written: torch.Tensor = overload(*args, **kwargs, **{out_name: place})
    return written


def _write_relu(args: tuple[Any, ...], kwargs: dict[str, Any], place: torch.Tensor) -> torch.Tensor:
    written: torch.Tensor = torch.ops.aten.clamp_min.out(*args, 0, out=place)  # as `relu` does (Activation.cpp)
    return written


def _write_copy(args: tuple[Any, ...], kwargs: dict[str, Any], place: torch.Tensor) -> torch.Tensor:
    return place.copy_(args[0])


# Instead of generated overloads, or where there is none.
_OWN: dict[OpOverload, Write] = {
    torch.ops.aten.relu.default: _write_relu,
    torch.ops.aten.clone.default: _write_copy,
    torch.ops.aten._to_copy.default: _write_copy,
}


def _sums_in_order(arguments: Sequence[Any]) -> bool:
    """Whether `index_add_` adds up the same numbers as `embedding_dense_backward`, in the same order.

    torch 2.13: on a GPU both add in an order of their own. For 16 bit floats `index_add_` rounds only once. Scaling by
    frequency is fused with the addition.
    """
    (_, dtype, device), _indices, _rows, _padding, scale = arguments
    return device.type == "cpu" and dtype in (torch.float32, torch.float64) and not scale


def _write_embedding_gradient(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: torch.Tensor
) -> torch.Tensor | None:
    """`embedding_dense_backward`, whose own `.out` overload copies the whole table."""
    grad, indices, rows, padding, _ = args
    indices = indices.reshape(-1)
    if indices.numel() and not (indices.min() >= 0 and indices.max() < rows):  # it ignores those, `index_add_` raises
        return None
    place.zero_().index_add_(0, indices, grad.reshape(indices.numel(), grad.shape[-1]))
    if 0 <= padding < rows:
        place[padding].zero_()
    return place
