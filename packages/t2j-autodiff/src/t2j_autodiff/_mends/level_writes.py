"""Values of a level of `torch.func` that a function puts into tensors and modules outside of it.

`tensor.data = value` gives the tensor the inside of a wrapper, and the process dies at its next use (`Tensor.data` in
torch/csrc/autograd/python_variable.cpp, torch 2.13). `nn.Module.to` and its relatives write parameters like this, and
replace buffers. Mostly the value is the tensor itself, in a wrapper.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import _compat
from .callers import calling_module

_TENSOR: Any = torch.Tensor
_SET_DATA = _TENSOR.data.__set__


def is_idle_write(func: Any, args: Any) -> bool:
    """Whether a call of torch is such a write, and changes nothing. Raises if it would change something."""
    if func != _SET_DATA or not all(isinstance(t, torch.Tensor) for t in args):
        return False
    tensor, value = args
    if _compat.is_wrapped(tensor) or not _compat.is_wrapped(value):
        return False
    if not _are_same(tensor, _compat.unwrapped(value)):
        raise RuntimeError("`torch.func` cannot set the `.data` of a tensor to what it differentiates or batches")
    return True


def is_unchanged(args: Any, result: Any) -> bool:
    """Whether a module converts one of its tensors, and gets the same in a wrapper. For a torch function mode."""
    if not args or not isinstance(result, torch.Tensor) or result is args[0] or not _compat.is_wrapped(result):
        return False
    return _compat.unwrapped(result) is args[0] and calling_module(1) == "torch.nn.modules.module"


def _are_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same numbers in the same memory."""
    return a is b or (a.layout == b.layout == torch.strided and _place(a) == _place(b))


def _place(t: torch.Tensor) -> tuple[Any, ...]:
    memory = t.untyped_storage()._cdata, t.storage_offset(), t.shape, t.stride()
    return *memory, t.dtype, t.is_conj(), t.is_neg()
