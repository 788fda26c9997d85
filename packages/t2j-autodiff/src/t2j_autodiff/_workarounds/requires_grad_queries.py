"""Functions that ask whether they are differentiated, which `torch.func.vmap` hides from them.

In a batch that autograd records, a tensor says that it requires no gradient
(https://github.com/pytorch/pytorch/issues/158610), accepts a hook that is never called
(https://github.com/pytorch/functorch/issues/638), and an embedding forgets which index is padding. A checkpoint
(`torch.utils.checkpoint`) would run its part again outside the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional
from torch.overrides import TorchFunctionMode

from .attention import is_attention_in_evaluation
from .callers import calling_module
from .embeddings import is_special_embedding


class RequiresGradQueries(TorchFunctionMode):
    """Notes the calls of a function that depend on `requires_grad`."""

    decides: str | None = None  # a call that may change the values of the function
    hidden: str | None = None  # a call that may change its derivative alone
    sets_hooks = False  # on tensors
    asks_for_leaves = False  # whether it asks for `grad_fn` or `is_leaf`, which differ in a trace too
    changes_course = False  # whether the function runs other operations while a mode is active

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        asker = calling_module(0)
        if asker == "torch.utils.checkpoint":
            self.hidden = "checkpoints"
        elif not asker.startswith(("t2j_", "torch._functorch.")):
            self._note_query(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _note_query(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if func in _QUERIES:
            getter: Any = func
            self.decides = getter.__self__.__name__ if func.__name__ == "__get__" else func.__name__
            self.sets_hooks |= func is torch.Tensor.register_hook
            self.asks_for_leaves |= func in _OF_LEAVES
        elif is_attention_in_evaluation(func, kwargs):  # it does not ask while a mode is active
            self.decides, self.changes_course = "attention in a module", True
        elif func in _BAGS or is_special_embedding(func, args, kwargs) or _is_chunked_loss(func, kwargs):
            self.hidden = func.__name__


_TENSOR: Any = torch.Tensor
_OF_LEAVES = {_TENSOR.grad_fn.__get__, _TENSOR.is_leaf.__get__}
_QUERIES = {*_OF_LEAVES, _TENSOR.requires_grad.__get__, torch.Tensor.register_hook, torch.Tensor.retain_grad}
_BAGS = {torch.nn.functional.embedding_bag, torch.embedding_bag}
_LINEAR_LOSS = vars(torch.nn.functional).get("linear_cross_entropy")  # of torch 2.13


def _is_chunked_loss(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Whether this is a loss whose forward computes the gradients of the arguments that require one."""
    return func is not None and func is _LINEAR_LOSS and kwargs.get("options") is not None
