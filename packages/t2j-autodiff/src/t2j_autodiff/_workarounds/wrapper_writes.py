"""Values of a level of `torch.func` that a function puts into tensors and modules outside that level.

`tensor.data = value` gives a plain tensor the implementation of a wrapper, and the process dies at its next use
(https://github.com/pytorch/pytorch/issues/184876, torch 2.13). `nn.Module.to` and its relatives (`nn.Module._apply`)
write parameters in this way, and replace buffers. The value is usually the tensor itself in a wrapper, and then
the write is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .. import _compat
from .callers import calling_module

_TENSOR: Any = torch.Tensor
_SET_DATA = _TENSOR.data.__set__


class WrapperWrites(TorchFunctionMode):
    """Leaves out writes that put a tensor, in a wrapper, into itself; the base of modes that do more.

    Raises where such a write would change something.
    """

    is_needed = False  # whether the mode has changed what ran

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if _sets_own_data(func, args):
            self.is_needed = True
            return None
        result = self.run_function(func, args, kwargs or {})
        if _is_conversion_to_itself(args, result):
            self.is_needed = True
            return args[0]
        return result

    def run_function(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of any other call of torch."""
        return func(*args, **kwargs)


def _sets_own_data(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether a call sets the `.data` of a plain tensor to the same numbers in a wrapper."""
    if func != _SET_DATA or not all(isinstance(t, torch.Tensor) for t in args):
        return False
    tensor, value = args
    if _compat.is_wrapped(tensor) or not _compat.is_wrapped(value):
        return False
    if not _are_same(tensor, _compat.unwrapped(value)):
        raise RuntimeError("`torch.func` cannot set the `.data` of a tensor to what it differentiates or batches")
    return True


def _is_conversion_to_itself(args: tuple[Any, ...], result: object) -> bool:
    """Whether `nn.Module` converts one of its tensors and gets the same one in a wrapper.

    Called by `__torch_function__`, at the depth that `calling_module` counts from.
    """
    if not args or not isinstance(result, torch.Tensor) or result is args[0] or not _compat.is_wrapped(result):
        return False
    return _compat.unwrapped(result) is args[0] and calling_module(1) == "torch.nn.modules.module"


def _are_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same numbers in the same memory."""
    return a is b or (a.layout == b.layout == torch.strided and _place(a) == _place(b))


def _place(t: torch.Tensor) -> tuple[Any, ...]:
    memory = t.untyped_storage()._cdata, t.storage_offset(), t.shape, t.stride()
    return *memory, t.dtype, t.is_conj(), t.is_neg()
