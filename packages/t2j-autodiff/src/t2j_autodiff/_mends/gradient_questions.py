"""Functions that ask whether they are being differentiated."""

from __future__ import annotations

from typing import Any

import torch
import torch.overrides
import torch.utils._pytree

from .batch_mends import is_attention_in_evaluation
from .callers import calling_module
from .embeddings import is_special_embedding


class GradientQuestions(torch.overrides.TorchFunctionMode):
    """Notes what a function does that depends on `requires_grad`, which `torch.func.vmap` hides from it.

    In a batch that is recorded by autograd, a tensor says that it requires no gradient, takes a hook that is never
    called, and an embedding forgets which index is padding. A checkpoint would run its part again outside of the batch.
    """

    decides: str | None = None  # what may change the values of the function
    hidden: str | None = None  # what may change its derivative alone
    hooks = False  # whether it sets hooks on tensors
    of_leaves = False  # whether it asks what else differs where it is traced
    changes_course = False  # whether the function takes another way because of this mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asker = calling_module(0)
        if asker == "torch.utils.checkpoint":
            self.hidden = "checkpoints"
        elif not asker.startswith(("t2j_", "torch._functorch.")):
            self._note(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _note(self, func: Any, args: Any, kwargs: Any) -> None:
        if func in _QUESTIONS:
            self.decides = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
            self.hooks |= func is torch.Tensor.register_hook
            self.of_leaves |= func in _OF_LEAVES
        elif is_attention_in_evaluation(func, kwargs):  # and does not ask in a mode
            self.decides, self.changes_course = "attention in a module", True
        elif func in _BAGS or is_special_embedding(func, args, kwargs) or _is_chunked(func, kwargs):
            self.hidden = func.__name__


_TENSOR: Any = torch.Tensor
_QUESTIONS = {
    _TENSOR.requires_grad.__get__,
    _TENSOR.grad_fn.__get__,
    _TENSOR.is_leaf.__get__,
    torch.Tensor.register_hook,
    torch.Tensor.retain_grad,
}
_OF_LEAVES = {_TENSOR.grad_fn.__get__, _TENSOR.is_leaf.__get__}


def _is_chunked(func: Any, kwargs: Any) -> bool:
    """Whether it is a loss that asks which argument requires a gradient, and computes that in its forward."""
    return func is not None and func is _LINEAR_LOSS and kwargs.get("options") is not None


_LINEAR_LOSS = vars(torch.nn.functional).get("linear_cross_entropy")  # of torch 2.13
_BAGS = {torch.nn.functional.embedding_bag, torch.embedding_bag}
