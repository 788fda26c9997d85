"""Operations whose batches in torch are wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.overrides
import torch.utils._pytree
from t2j_core.extend import DispatchMode

from .._compat.nodes import _nodes


class RandomOperations(DispatchMode):
    """Notes whether an operation of this thread draws random numbers."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
        return self.operate(func, args, kwargs)


# --- what torch.func.vmap gets wrong -------------------------------------------------------------------------------

# Each was found by running torch's own samples in a batch in which one operand alone has the batch axis, and one by
# one. torch 2.13: of `_cdist_backward` with the gradient alone batched most is zero, and a batch of values for
# `index_fill` is written into one expanded tensor.
_WRONG_IN_BATCHES = {"aten._cdist_backward.default", "aten.index_fill_.int_Tensor"}
_WRONG_NODES = {"CdistBackward0"}
# Where some cotangents of a batch of pullbacks are zero, autograd's derivative of the batch is wrong (torch 2.13; the
# only one among torch's own samples).
_WRONG_WHERE_DIFFERENTIATED = {"aten.logcumsumexp.default"}


class WrongInBatches(DispatchMode):
    """Notes an operation that `torch.func.vmap` batches wrongly, without an error.

    And attention without the logarithms of its sums, which only a backward needs. PyTorch leaves them out on a GPU
    where no argument says that it requires a gradient (`compute_logsumexp` in
    aten/src/ATen/native/transformers/attention.cpp), and the backward of cuDNN's kernel is then wrong without an error.
    """

    found: str | None = None
    attention: str | None = None

    def __init__(self, *, differentiated: bool = False) -> None:
        """`differentiated` says whether it is a batch of derivatives, of which a derivative is wanted."""
        super().__init__()
        self._wrong = _WRONG_IN_BATCHES | (_WRONG_WHERE_DIFFERENTIATED if differentiated else set())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) in self._wrong:
            self.found = str(func)
        if str(func) in _ATTENTION_WITH_SUMS and not argument_of(func, "compute_log_sumexp", args, kwargs or {}):
            self.attention = str(func)
        return self.operate(func, args, kwargs)


_ATTENTION_WITH_SUMS = {
    "aten._scaled_dot_product_efficient_attention.default",
    "aten._scaled_dot_product_cudnn_attention.default",
}


def argument_of(operation: Any, name: str, args: Any, kwargs: Any) -> Any:
    """What an operation gets for an argument, or its default; None if it has no argument of that name."""
    for position, argument in enumerate(operation._schema.arguments):
        if argument.name == name:
            return args[position] if position < len(args) else kwargs.get(name, argument.default_value)
    return None


def is_wrong_in_batches(edges: Iterable[Any]) -> bool:
    """Whether a graph has a backward that `torch.func.vmap` batches wrongly over cotangents."""
    return any(type(node).__name__ in _WRONG_NODES for node in _nodes(edges))
