"""A run of a function without data."""

from __future__ import annotations

import contextlib
import math
import weakref
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as torch_tree

from .. import _compat
from .._base.garbage import collect
from .dense import is_dense, needs_values
from .indices import expands_index
from .randomness import Draws


class NeedsDataError(Exception):
    """Only a run on real tensors tells the outputs."""


class OnMeta(_compat.DispatchMode):
    """Runs operations on the function's arguments on meta tensors: no data, no work.

    Tensors that do not depend on the arguments (masks, position tables) are made for real, because functions cache
    them; parameters that a function closes over get meta twins, and are never written. PyTorch's own fake tensors
    would know the device as well, but cost seconds to import.
    """

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self._draws = draws
        self.results: list[weakref.ref[torch.Tensor]] = []
        self._operations = 0
        self._largest = 0  # elements of the largest tensor
        self._is_random = False
        self.expands_indices = False
        self.asked_for_values = False  # of a tensor without data
        self.met_others = False  # than dense tensors
        self._autocast_depth = 0
        self._twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._made: dict[int, Any] = {}  # storages of real tensors of this run, by address

    def _meta(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("meta")
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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._run(func, args, dict(kwargs or {}))
        self._draws.note(func, args, kwargs or {}, result)
        return result

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if _compat.autocast_depth() > self._autocast_depth:
            raise NotImplementedError("autocast acts by device, and tensors without data have none")
        if func.name().startswith("aten::quantize"):
            raise NeedsDataError("tensors without data are never quantised")
        tensors = [leaf for leaf in torch_tree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self._operations += 1
        self._largest = max(self._largest, *(t.numel() for t in tensors), 0)
        self._is_random |= torch.Tag.nondeterministic_seeded in func.tags
        self.expands_indices |= expands_index(func, args)
        writes = func._schema.is_mutable
        makes = not writes and not any(r.alias_info for r in func._schema.returns)
        if all(not t.is_meta for t in tensors) and (not writes or all(map(self._is_made, tensors))):
            if kwargs.get("device") == _META:  # `device=x.device`
                kwargs["device"] = _compat.torch_device()
            result = self.operate(func, args, kwargs)
            for leaf in torch_tree.tree_leaves(result):
                if makes and isinstance(leaf, torch.Tensor):
                    self._made[leaf.untyped_storage().data_ptr()] = leaf.untyped_storage()
            return result
        self._refuse_others(tensors)
        result = _from_zeros(func, tensors, args, kwargs)
        if result is None:
            try:
                result = self._on_meta(func, args, kwargs)
            except Exception:
                self.asked_for_values |= needs_values(func)
                raise
        leaves = torch_tree.tree_leaves(result)
        self._refuse_others(leaves)
        self.results += [weakref.ref(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return result

    def _refuse_others(self, values: list[Any]) -> None:
        if not all(map(is_dense, values)):
            self.met_others = True  # the function may handle the exception
            raise NeedsDataError(OTHERS)

    def _on_meta(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = torch_tree.tree_map(self._meta, (args, kwargs))
        if any(a.name == "device" for a in func._schema.arguments):
            kwargs["device"] = _META
        kwargs.pop("pin_memory", None)
        return self.operate(func, args, kwargs)

    def is_quick(self) -> bool:
        """Whether a run takes less than about 0.1 ms, and always does the same."""
        return self._operations <= _FEW and self._largest <= _TINY and not self._is_random

    def kept(self) -> bool:
        """Whether the function still refers to a tensor without data after its outputs are gone."""
        self._twins.clear()
        if any(reference() is not None for reference in self.results):
            collect()
        return any(reference() is not None for reference in self.results)


OTHERS = "tensors without data are always dense"
_META = torch.device("meta")
_FEW, _TINY = 12, 1 << 12
_SMALL = 1 << 24


def _most_elements(func: Any, tensors: list[torch.Tensor]) -> int:
    """A bound on the elements of the result, unless an argument is a size."""
    if torch.Tag.pointwise in func.tags:
        with contextlib.suppress(ValueError):  # the operation itself tells better what does not broadcast
            return math.prod(np.broadcast_shapes(*(t.shape for t in tensors)))
    return math.prod(max(t.numel(), 1) for t in tensors)


def _from_zeros(func: Any, tensors: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
    """What a small operation makes of zeros, as meta tensors; None where that does not tell.

    Many meta kernels are written in Python and import torch's compiler, which takes seconds; zeros are cheaper.
    """
    schema = func._schema
    if (
        _compat.dynamo_is_loaded()
        or schema.is_mutable
        or any(r.alias_info for r in schema.returns)
        or needs_values(func)
        or _most_elements(func, tensors) > _SMALL
    ):
        return None

    def zeros(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu").zero_()
        return torch.device("cpu") if isinstance(value, torch.device) else value

    try:
        result = func(*torch_tree.tree_map(zeros, args), **torch_tree.tree_map(zeros, kwargs))
    except Exception:  # zeros need not be valid input: a singular matrix
        return None
    if not all(type(leaf) is torch.Tensor and is_dense(leaf) for leaf in torch_tree.tree_leaves(result)):
        return None
    return torch_tree.tree_map(_without_data, result)


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
