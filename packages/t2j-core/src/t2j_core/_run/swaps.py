"""Operations that write into result buffers instead of new memory, and the dispatch mode that replaces them."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch._ops import OpOverload

from .. import _compat
from .._signature.signature import Leaf
from .producers import Producer, kinds
from .replacements import Write, replacement_of


class Swap(NamedTuple):
    """An operation that writes into a result buffer from now on."""

    operation: OpOverload
    run: int  # how often the same operation ran before it
    write: Write
    output: int
    arguments: list[Any]  # `kinds` of the arguments when it was recorded
    shape: tuple[int, ...]  # how the operation's result lies in the memory of the output, which may be a view of it
    strides: tuple[int, ...]


Swaps = Mapping[OpOverload, Mapping[int, Swap]]
"""By the operation, and how often it ran before."""


def by_operation(swaps: Iterable[Swap]) -> Swaps:
    """The swaps as `Redirector` looks them up."""
    found: dict[OpOverload, dict[int, Swap]] = {}
    for swap in swaps:
        found.setdefault(swap.operation, {})[swap.run] = swap
    return found


class Redirector(_compat.DispatchMode):
    """Replaces operations of one call. It does so once each, also if it is on several times."""

    def __init__(self, swaps: Swaps, buffers: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._swaps, self._buffers = swaps, buffers
        self._runs: collections.Counter[OpOverload] = collections.Counter()

    def handle(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation; in a result buffer if there is a swap for it."""
        if (swaps := self._swaps.get(func)) is None:
            return self.operate(func, args, kwargs)
        swap = swaps.get(self._runs[func])
        self._runs[func] += 1
        if swap is None or swap.arguments != kinds(args, kwargs):
            return self.operate(func, args, kwargs)
        place = self._buffers[swap.output].as_strided(swap.shape, swap.strides)
        written = swap.write(args, kwargs, place)
        return self.operate(func, args, kwargs) if written is None else written


def swap_of(producer: Producer | None, result: torch.Tensor, output: int, leaf: Leaf, *, in_node: bool) -> Swap | str:
    """How the producer of a result can write into the buffer of the output; or why it cannot."""
    if producer is None:
        return "its memory is not new, or not all of an operation's"
    write = replacement_of(producer.operation, producer.arguments)
    if write is None:
        return f"{producer.operation} cannot write into given memory"
    has_same_dtype = result.dtype == producer.dtype == leaf.torch_dtype
    if not result.is_contiguous() or result.numel() != producer.numel or not has_same_dtype:
        return f"its layout in memory is not the one that {producer.operation} wrote"
    return Swap(
        producer.operation,
        producer.run_in_node if in_node else producer.run,
        write,
        output,
        producer.arguments,
        producer.shape,
        producer.strides,
    )
