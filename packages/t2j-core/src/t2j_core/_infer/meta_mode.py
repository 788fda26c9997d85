"""A run of a function on meta tensors: they have a shape and a dtype, but no data and no device of their own."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as torch_tree

from .. import _compat
from .._base.garbage import collect
from .._random.keyed import draws_otherwise
from .._signature.signature import SMALL
from .dense import ALWAYS_DENSE, is_dense, needs_values
from .draws import Draws
from .indices import expands_index


class NeedsDataError(Exception):
    """Only a run on data shows the outputs."""


class OnMeta(_compat.DispatchMode):
    """Runs operations that depend on the function's arguments on meta tensors: no data, no work.

    Tensors that do not depend on the arguments (masks, position tables) are made with data, because functions cache
    them; parameters that a function closes over get meta twins, and are never written. Torch's fake tensors know their
    device as well, but take seconds to import.
    """

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self._draws = draws
        self.results: list[weakref.ref[torch.Tensor]] = []
        self._operations = 0
        self._largest = 0  # elements of the largest tensor
        self._is_random = False
        self._is_foreign = False  # an operation that is not torch's, whose time is not known
        self._draws_otherwise = False  # by an operation that no kernel replaces, or on another device
        self.expands_indices = False
        self.asked_for_values = False
        self.met_non_dense = False  # sparse, nested or quantised tensors
        self._autocast_depth = 0
        self._twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._made: dict[int, torch.UntypedStorage] = {}  # of tensors with data that this run has made, by address

    def _meta(self, value: object) -> object:
        if isinstance(value, torch.device):
            return _META
        if not isinstance(value, torch.Tensor) or value.is_meta:
            return value
        if id(value) not in self._twins:
            self._twins[id(value)] = (value, _without_data(value))
        return self._twins[id(value)][1]

    def __enter__(self) -> OnMeta:
        self._autocast_depth = _compat.autocast_depth()
        super().__enter__()
        return self

    def _is_made(self, tensor: torch.Tensor) -> bool:
        return not tensor.is_meta and tensor.untyped_storage().data_ptr() in self._made

    def handle(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation without data, and note it."""
        self._draws_otherwise |= draws_otherwise(func, args, kwargs)
        result = self._run(func, args, dict(kwargs))
        self._draws.note(func, args, kwargs, result)
        return result

    def _run(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _compat.autocast_depth() > self._autocast_depth:
            raise NotImplementedError("autocast depends on the device, which meta tensors do not have")
        if func.name().startswith("aten::quantize"):
            raise NeedsDataError("tensors without data are never quantised")
        tensors = [leaf for leaf in torch_tree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self._operations += 1
        self._note_size(tensors)
        self._is_random |= torch.Tag.nondeterministic_seeded in func.tags
        self._is_foreign |= func.namespace != "aten"
        self.expands_indices |= expands_index(func, args)
        may_write = not func._schema.is_mutable or all(map(self._is_made, tensors))
        if may_write and not any(tensor.is_meta for tensor in tensors):
            return self._on_data(func, args, kwargs)
        self._refuse_non_dense(tensors)
        result = _from_zeros(func, tensors, args, kwargs)
        if result is None:
            try:
                result = self._on_meta(func, args, kwargs)
            except Exception:
                self.asked_for_values |= needs_values(func)
                raise
        leaves = torch_tree.tree_leaves(result)
        self._refuse_non_dense(leaves)
        made = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        self._note_size(made)
        self.results += map(weakref.ref, made)
        return result

    def _note_size(self, tensors: list[torch.Tensor]) -> None:
        self._largest = max(self._largest, *(t.numel() for t in tensors), 0)

    def _on_data(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("device") == _META:  # `device=x.device`
            kwargs["device"] = _compat.torch_device()
        result = self.operate(func, args, kwargs)
        if not func._schema.is_mutable and not any(r.alias_info for r in func._schema.returns):
            for leaf in torch_tree.tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self._made[leaf.untyped_storage().data_ptr()] = leaf.untyped_storage()
        return result

    def _refuse_non_dense(self, values: Sequence[object]) -> None:
        if not all(map(is_dense, values)):
            self.met_non_dense = True  # noted, because the function may handle the exception
            raise NeedsDataError(ALWAYS_DENSE)

    def _on_meta(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = torch_tree.tree_map(self._meta, (args, kwargs))
        if any(a.name == "device" for a in func._schema.arguments):
            kwargs["device"] = _META
        kwargs.pop("pin_memory", None)
        return self.operate(func, args, kwargs)

    def is_quick(self) -> bool:
        """Whether a call takes less than about 0.1 ms, and draws no random numbers."""
        return self._operations <= _FEW and self._largest <= SMALL and not self._is_random

    def is_small(self) -> bool:
        """Whether each operation is one of torch on small tensors."""
        return self._largest <= SMALL and not self._is_foreign

    def draws_operations(self) -> bool:
        """Whether each operation is one of torch, and those that draw can be replaced."""
        return not (self._is_foreign or self._draws_otherwise)

    def is_any_kept(self) -> bool:
        """Whether the function still refers to a meta tensor after its outputs are gone."""
        self._twins.clear()
        if any(reference() is not None for reference in self.results):
            collect()
        return any(reference() is not None for reference in self.results)


_META = torch.device("meta")
_FEW = 12
_MANY = 1 << 24


def _most_elements(func: torch._ops.OpOverload, tensors: list[torch.Tensor]) -> int:
    """An upper bound on the elements of the result, unless an argument is a size."""
    if torch.Tag.pointwise in func.tags:
        with contextlib.suppress(ValueError):  # torch has the better error for shapes that do not broadcast
            return math.prod(np.broadcast_shapes(*(t.shape for t in tensors)))
    return math.prod(max(t.numel(), 1) for t in tensors)


def _from_zeros(
    func: torch._ops.OpOverload, tensors: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The result of a small operation on zeros, as meta tensors; None if that may differ from the result on data.

    Many meta kernels are written in Python (torch/_meta_registrations.py) and import torch's compiler, which takes
    seconds; zeros are cheaper.
    """
    schema = func._schema
    if (
        _compat.dynamo_is_loaded()
        or schema.is_mutable
        or any(r.alias_info for r in schema.returns)
        or needs_values(func)
        or _most_elements(func, tensors) > _MANY
    ):
        return None

    def zeros(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu").zero_()
        return torch.device("cpu") if isinstance(value, torch.device) else value

    try:
        result = func(*torch_tree.tree_map(zeros, args), **torch_tree.tree_map(zeros, kwargs))
    except Exception:  # zeros may be invalid input, such as a singular matrix
        return None
    if not all(type(leaf) is torch.Tensor and is_dense(leaf) for leaf in torch_tree.tree_leaves(result)):
        return None
    return torch_tree.tree_map(_without_data, result)


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
