"""A run of a function on torch's fake tensors, which claim the device of the call and hold no data."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as torch_tree

from .. import _compat
from .dense import is_dense, needs_values
from .draws import Draws


class WatchFake(_compat.DispatchMode):
    """Notes operations whose results on fake tensors cannot be trusted, even if the function handles the exception."""

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self._draws = draws
        self.asked_for_values = False
        self.met_non_dense = False  # sparse, nested or quantised tensors

    def handle(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, and note whether its results can be trusted."""
        try:
            result = self.operate(func, args, kwargs)
        except Exception:
            self.asked_for_values |= needs_values(func)
            raise
        self._draws.note(func, args, kwargs, result)
        self.met_non_dense |= not all(map(is_dense, torch_tree.tree_leaves((args, kwargs, result))))
        return result
