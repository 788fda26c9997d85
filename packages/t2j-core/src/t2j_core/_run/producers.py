"""Which operations made the memory of tensors, as a dispatch mode sees it."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as torch_tree
from torch._ops import OpOverload
from torch.autograd.graph import Node

from .. import _compat


class Producer(NamedTuple):
    """The operation that made the memory of a tensor, and how its result lay in it."""

    operation: OpOverload
    run: int
    """How often the same operation ran before."""
    node: Node | None
    """The node of an autograd graph that it ran for, if it did."""
    run_in_node: int
    """How often the same operation ran before since that node began."""
    arguments: list[Any]
    """`kinds` of its arguments."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    numel: int


class Recorder(_compat.DispatchMode):
    """Notes the operations that run within."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.roots: Sequence[Node] = ()
        """Where a backward began, if there was one."""
        self._by_address: dict[int, Producer] = {}  # the newest of an address counts
        self._node: Node | None = None
        self._runs: collections.Counter[OpOverload] = collections.Counter()
        self._runs_in_node: collections.Counter[OpOverload] = collections.Counter()

    def producer_of(self, tensor: torch.Tensor) -> Producer | None:
        """The operation whose result begins where `tensor` does; None if none of those seen made this memory."""
        return self._by_address.get(_address(tensor) or 0)

    def note_backward(self, roots: Sequence[Node]) -> contextlib.AbstractContextManager[object]:
        """The `Listener` of a recorded call."""
        self.roots = roots
        return contextlib.nullcontext()

    def handle(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, and note which memory it has made."""
        node = _compat.current_autograd_node()
        if node is not self._node:
            self._node = node
            self._runs_in_node.clear()
        result = self.operate(func, args, kwargs)
        if isinstance(result, torch.Tensor) and not any(r.alias_info for r in func._schema.returns):
            self._note(func, args, kwargs, result)
        self.count += 1
        self._runs[func] += 1
        self._runs_in_node[func] += 1
        return result

    def _note(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: torch.Tensor) -> None:
        inputs = [leaf for leaf in torch_tree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        address = _address(result)
        # Some operations return views although their schema does not say so, such as `aten::_unsafe_view`.
        if address is not None and all(_address(t) != address for t in inputs):
            self._by_address[address] = Producer(
                func,
                self._runs[func],
                self._node,
                self._runs_in_node[func],
                kinds(args, kwargs),
                result.dtype,
                tuple(result.shape),
                result.stride(),
                result.numel(),
            )


def kinds(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What decides on shape and dtype of a result: those of tensors, types of numbers, other arguments themselves."""
    found: list[Any] = []
    for leaf in torch_tree.tree_leaves((args, kwargs)):
        if isinstance(leaf, torch.Tensor):
            found.append((leaf.shape, leaf.dtype, leaf.device))
        else:
            found.append(type(leaf) if isinstance(leaf, float) else leaf)
    return found


def _address(tensor: torch.Tensor) -> int | None:
    """Where the memory of a tensor begins, if that is where the tensor begins."""
    try:
        return (tensor.untyped_storage().data_ptr() or None) if tensor.storage_offset() == 0 else None
    except RuntimeError:  # no storage, or one without data: sparse tensors, torch's symbolic zeros
        return None
