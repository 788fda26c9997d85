"""Operations whose batching rule in torch is wrong, without an error.

Found by running torch's own samples (`OpInfo`) in a batch in which a single operand has the batch axis, and one by
one (torch 2.13):

- where only the gradients of `_cdist_backward` have the batch axis, most results are zero;
- `index_fill_` with a batch of values writes all of them into one expanded tensor;
- where some cotangents of a batch of pullbacks are zero, autograd's derivative of `logcumsumexp` in the batch is wrong.

Attention on a GPU is noted where it does not compute the logarithms of its sums, which a backward reads. Torch leaves
them out where no
argument requires a gradient (`should_compute_logsumexp` in aten/src/ATen/native/transformers/attention.cpp), and the
backward of cuDNN's kernel is then wrong without an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from t2j_core.extend import DispatchMode

from .. import _compat

_WRONG = {"aten._cdist_backward.default", "aten.index_fill_.int_Tensor"}
_WRONG_WHERE_DIFFERENTIATED = {"aten.logcumsumexp.default"}
_WRONG_NODES = {"CdistBackward0"}
_ATTENTION_WITH_SUMS = {
    "aten._scaled_dot_product_efficient_attention.default",
    "aten._scaled_dot_product_cudnn_attention.default",
}


class WrongBatchingRules(DispatchMode):
    """Notes an operation that `torch.func.vmap` batches wrongly, and attention without the logarithms of its sums."""

    found: str | None = None  # the operation
    attention: str | None = None  # the kernel

    def __init__(self, *, differentiated: bool = False) -> None:
        """`differentiated` says whether it is a batch of derivatives, of which a derivative is wanted."""
        super().__init__()
        self._wrong = _WRONG | (_WRONG_WHERE_DIFFERENTIATED if differentiated else set())

    def handle(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, and note whether it is one of these."""
        name = str(func)
        if name in self._wrong:
            self.found = name
        if name in _ATTENTION_WITH_SUMS and not _compat.argument_of(func, "compute_log_sumexp", args, kwargs):
            self.attention = name
        return self.operate(func, args, kwargs)


def has_wrong_batching_rule(nodes: Iterable[_compat.Node]) -> bool:
    """Whether a graph has a backward that `torch.func.vmap` batches wrongly over cotangents."""
    return any(type(node).__name__ in _WRONG_NODES for node in _compat.nodes_of(nodes))
