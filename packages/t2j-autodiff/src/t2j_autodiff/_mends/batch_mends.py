"""What `torch.func.vmap` breaks without an error, done otherwise: found with ties in the numbers, in torch 2.13.

Its rules for `max` and `min` of a whole tensor go through those along an axis, whose derivative goes to one of several
equal numbers (BatchRulesReduceOps.cpp in aten/src/ATen/functorch); that of the whole is shared between them. That for
`select_scatter` expands an index, so that the derivative of the source is a sum over an axis
(BatchRulesScatterOps.cpp). And `x.data` is detached from the innermost of several derivatives alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional
from torch.overrides import TorchFunctionMode

from .. import _compat
from .level_writes import is_idle_write, is_unchanged

_ATEN = torch.ops.aten
_TENSOR: Any = torch.Tensor
_GET_DATA = _TENSOR.data.__get__


class BatchMends(TorchFunctionMode):
    """Runs batches rightly. `is_needed` tells whether that made a difference, `wrong` what stays wrong.

    Only where something outside of the batch `differentiates` it: inside, derivatives are those of one example.
    """

    def __init__(self, *, differentiates: bool) -> None:
        super().__init__()
        self.is_needed = False
        self.wrong: str | None = None
        self.changes_course = False  # whether the function takes another way because of this mode
        self._differentiates = differentiates

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_idle_write(func, args):
            self.is_needed = True
            return None
        if func == _GET_DATA and _compat.is_wrapped(args[0]):
            self.is_needed = True
            return args[0].detach()
        self.changes_course |= is_attention_in_evaluation(func, kwargs or {})
        if self._differentiates:
            func = self._mended(func, is_whole=len(args) == 1 and not kwargs)
        result = func(*args, **(kwargs or {}))
        if is_unchanged(args, result):
            self.is_needed = True
            return args[0]
        return result

    def _mended(self, func: Any, *, is_whole: bool) -> Any:
        """What to call for `func`, which gets a tensor and no axis if it `is_whole`."""
        if func in _MEDIANS and is_whole:
            self.wrong = func.__name__
        instead = _OF_WHOLE_TENSORS.get(func) if is_whole else _SCATTERS.get(func)
        self.is_needed |= instead is not None
        return instead or func


def is_attention_in_evaluation(func: Any, kwargs: Any) -> bool:
    """Whether a module evaluates attention as it does under a function mode.

    `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` have another way where nothing requires a gradient, but not
    in a mode (`has_torch_function`).
    """
    return func is torch.nn.functional.multi_head_attention_forward and not kwargs.get("training", True)


def _select_scatter(input: torch.Tensor, src: torch.Tensor, dim: int, index: int) -> torch.Tensor:
    if input.select(dim, index).shape != src.shape:  # which is an error
        return torch.select_scatter(input, src, dim, index)
    shape = [1] * input.ndim
    size = shape[dim] = input.shape[dim]
    place = (torch.arange(size, device=input.device) == index % size).reshape(shape)
    return torch.where(place, src.to(input.dtype).unsqueeze(dim), input)


def _forms(name: str) -> list[Any]:
    """How a function is called that is of torch and of its tensors."""
    packet = getattr(_ATEN, name)
    return [vars(torch)[name], vars(torch.Tensor.__base__)[name], packet, packet.default]


_Forms = dict[Any, Callable[..., torch.Tensor]]
_SCATTERS: _Forms = dict.fromkeys(_forms("select_scatter"), _select_scatter)
_OF_WHOLE_TENSORS: _Forms = dict.fromkeys(_forms("max"), torch.amax) | dict.fromkeys(_forms("min"), torch.amin)
_MEDIANS = {*_forms("median"), *_forms("nanmedian")}  # with the fault of `max`, and no other form
