"""Operations that `torch.func.vmap` runs with another derivative than one example has, and what runs instead.

Observed with torch 2.13, where numbers are equal or derivatives nest:

- `max` and `min` of a whole tensor share the derivative between equal numbers. Their batching rules reduce along an
  axis (aten/src/ATen/functorch/BatchRulesReduceOps.cpp), where one of the equal numbers gets all of it. `median` and
  `nanmedian` do the same, and no other operation has their derivative.
- The derivative of `select_scatter` by its source is summed over an axis (BatchRulesScatterOps.cpp in that folder).
- `x.data` is detached only from the innermost of several levels of `torch.func`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional

from .. import _compat
from .attention import is_attention_in_evaluation
from .wrapper_writes import WrapperWrites

_ATEN = torch.ops.aten
_TENSOR: Any = torch.Tensor
_GET_DATA = _TENSOR.data.__get__


class VmapFixes(WrapperWrites):
    """Runs a batch with the derivatives of its examples.

    `differentiates` says that something outside the batch differentiates it. Otherwise derivatives are taken inside
    the batch, of one example, and need no replacement.
    """

    def __init__(self, *, differentiates: bool) -> None:
        super().__init__()
        self.wrong: str | None = None  # an operation whose derivative stays wrong
        self.changes_course = False  # whether the function runs other operations while a mode is active
        self._differentiates = differentiates

    def run_function(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `func` or of what replaces it."""
        if func == _GET_DATA and _compat.is_wrapped(args[0]):
            self.is_needed = True
            return args[0].detach()
        self.changes_course |= is_attention_in_evaluation(func, kwargs)
        if self._differentiates:
            func = self._replacement(func, is_whole=len(args) == 1 and not kwargs)
        return func(*args, **kwargs)

    def _replacement(self, func: Callable[..., Any], *, is_whole: bool) -> Callable[..., Any]:
        """What to call in place of `func`. `is_whole` says that its only argument is a tensor: it has no axis."""
        if func in _MEDIANS and is_whole:
            self.wrong = func.__name__
        replacement = _OF_WHOLE_TENSORS.get(func) if is_whole else _SCATTERS.get(func)
        self.is_needed |= replacement is not None
        return replacement or func


def _select_scatter(input: torch.Tensor, src: torch.Tensor, dim: int, index: int) -> torch.Tensor:
    if input.select(dim, index).shape != src.shape:  # torch raises
        return torch.select_scatter(input, src, dim, index)
    shape = [1] * input.ndim
    size = shape[dim] = input.shape[dim]
    place = (torch.arange(size, device=input.device) == index % size).reshape(shape)
    return torch.where(place, src.to(input.dtype).unsqueeze(dim), input)


def _forms(name: str) -> list[Callable[..., Any]]:
    """What a mode may get for one operation: the function, the method of tensors, and the operator of `torch.ops`."""
    packet = getattr(_ATEN, name)
    return [vars(torch)[name], vars(torch.Tensor.__base__)[name], packet, packet.default]


_Replacements = dict[Callable[..., Any], Callable[..., torch.Tensor]]
_SCATTERS: _Replacements = dict.fromkeys(_forms("select_scatter"), _select_scatter)
_OF_WHOLE_TENSORS: _Replacements = dict.fromkeys(_forms("max"), torch.amax) | dict.fromkeys(_forms("min"), torch.amin)
_MEDIANS = {*_forms("median"), *_forms("nanmedian")}
