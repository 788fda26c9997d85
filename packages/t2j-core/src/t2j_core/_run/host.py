"""Platforms without a handler (TPU): arrays travel to the CPU, torch runs there, results travel back."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import torch

from .. import _compat
from .._base.dtypes import dtype_j2t
from .._base.errors import OutputError
from .crossing import wire
from .results import check_output
from .torch_fn import TorchFn
from .weak_fn import WeakFn, strong

_CPU = 1  # DLPack's number


def host_call(fn: TorchFn | WeakFn, *operands: jax.Array) -> Any:
    """Call `fn` on NumPy copies of the operands through `jax.pure_callback`."""
    results = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in strong(fn).signature.outputs.leaves]
    return jax.pure_callback(lambda *arrays: _run(strong(fn), arrays), results, *operands)


def _run(fn: TorchFn, arrays: tuple[Any, ...]) -> list[np.ndarray[Any, Any]]:
    signature = fn.signature
    operands = [_to_torch(np.asarray(arrays[i])) for i in fn.used]
    buffers = [torch.empty(leaf.shape, dtype=dtype_j2t(leaf.dtype)) for leaf in signature.outputs.leaves]
    with _compat.default_torch_state(("cpu",)):
        results = fn.target(*operands, *(buffers if fn.pass_results else ()))
        tensors = (results,) if isinstance(results, torch.Tensor) else tuple(results)
        if len(tensors) != len(buffers):
            raise OutputError(f"{signature.name} returned {len(tensors)} tensors, not {len(buffers)}.")
        for index, (buffer, tensor) in enumerate(zip(buffers, tensors, strict=True)):
            if wire(signature.outputs.leaves[index]):
                tensor = tensor.view(buffer.dtype)
            buffer.copy_(check_output(signature, index, tensor, _CPU, 0).detach())
    return [_to_numpy(buffer, leaf.dtype) for buffer, leaf in zip(buffers, signature.outputs.leaves, strict=True)]


def _to_torch(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """A private tensor, made from bytes, because NumPy and torch share fewer dtypes than JAX and torch do."""
    data = torch.from_numpy(np.frombuffer(bytearray(array.tobytes()), np.uint8)) if array.size else torch.empty(0)
    dtype = dtype_j2t(array.dtype)
    return data.view(dtype).reshape(array.shape) if array.size else torch.empty(array.shape, dtype=dtype)


def _to_numpy(tensor: torch.Tensor, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if tensor.numel() == 0:
        return np.empty(tuple(tensor.shape), dtype)
    return tensor.reshape(-1).view(torch.uint8).numpy().view(dtype).reshape(tuple(tensor.shape))
