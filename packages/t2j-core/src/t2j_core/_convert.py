"""Arrays between JAX and PyTorch outside `jit`: DLPack, without a copy where both sides allow."""

from __future__ import annotations

from typing import Any

import jax
import torch

from . import _compat
from ._dtypes import canonical, dtype_j2t, row_of_torch
from ._errors import ArgumentError, describe


def j2t(array: jax.Array) -> torch.Tensor:
    """The JAX array as a torch tensor over the same memory.

    Args:
      array: a concrete JAX array on one device, of any shape and any dtype that torch has.

    Returns:
      A tensor of the same shape, dtype and device. JAX arrays are immutable, so do not write into it.

    Raises:
      ArgumentError: for a tracer, an array spread over several devices, or something that is not a JAX array.

    >>> import jax.numpy as jnp
    >>> j2t(jnp.arange(3.0))
    tensor([0., 1., 2.])
    """
    if isinstance(array, _compat.Tracer):
        raise ArgumentError(
            describe(
                "`j2t` was called on a traced array, which has no memory yet.",
                got=array.aval.str_short(),
                remedy="Inside `jax.jit`, wrap the torch code with `torch2jax` and call that.",
            )
        )
    if not isinstance(array, jax.Array):
        raise ArgumentError(
            describe(
                "`j2t` takes a JAX array.", expected="jax.Array", got=type(array).__name__, remedy="Use `jnp.asarray`."
            )
        )
    if len(array.devices()) != 1:
        raise ArgumentError(
            describe(
                "`j2t` takes an array on one device.",
                got=f"{array.aval.str_short()} on {len(array.devices())} devices",
                remedy="Convert its shards: `[j2t(shard.data) for shard in array.addressable_shards]`.",
            )
        )
    dtype = dtype_j2t(array.dtype)
    if _has_no_float8(dtype):
        return _from_dlpack(array.view("uint8")).view(dtype)
    return _from_dlpack(array)


def _has_no_float8(dtype: torch.dtype) -> bool:
    """Whether `dtype` is a float8 and this torch, being older than 2.10, has none in its DLPack."""
    return str(dtype).startswith("torch.float8") and _compat.torch_exchange_api() is None


def _from_dlpack(array: jax.Array) -> torch.Tensor:
    if array.size == 0:
        (device,) = array.devices()
        where = "cpu" if device.platform == "cpu" else f"cuda:{device.local_hardware_id}"
        return torch.empty(array.shape, dtype=dtype_j2t(array.dtype), device=where)
    return torch.utils.dlpack.from_dlpack(array)


def t2j(tensor: torch.Tensor) -> jax.Array:
    """The torch tensor as a JAX array, over the same memory where it is contiguous and of a dtype JAX stores.

    Args:
      tensor: a dense tensor of any shape and any dtype that JAX has. Its autograd history is left behind.

    Returns:
      An array of the same shape and device; 64-bit dtypes become 32-bit while x64 is off.

    Raises:
      ArgumentError: for something that is not a dense torch tensor.
      DTypeError: for a dtype JAX does not have.

    >>> t2j(torch.tensor([1, 2]))
    Array([1, 2], dtype=int32)
    """
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        got = type(tensor).__name__
        if isinstance(tensor, torch.Tensor):
            got = "a meta tensor, which has no data" if tensor.is_meta else f"{tensor.layout}"
            got = "a nested tensor" if tensor.is_nested else got
        raise ArgumentError(
            describe(
                "`t2j` takes a dense torch tensor.", expected="torch.Tensor", got=got, remedy="Use `torch.as_tensor`."
            )
        )
    if not has_data(tensor):
        raise ArgumentError(
            describe(
                "`t2j` takes a tensor that holds data.",
                expected="torch.Tensor",
                got=f"a {type(tensor).__name__} without data, such as a fake tensor or one inside `torch.func`",
                remedy="Convert outside of fake mode and of torch's function transforms.",
            )
        )
    row = row_of_torch(tensor.dtype)
    tensor = tensor.detach().resolve_conj().resolve_neg()
    stored = dtype_j2t(canonical(row.jax))
    tensor = tensor.to(stored).contiguous()
    if _has_no_float8(stored):
        return _compat.array_over(tensor.view(torch.uint8)).view(canonical(row.jax))
    return _compat.array_over(tensor)


def has_data(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds values, unlike fake ones and those inside `torch.func`."""
    try:
        return tensor.numel() == 0 or tensor.data_ptr() != 0
    except RuntimeError:
        return False


def tree_j2t(tree: Any) -> Any:
    """`j2t` on every JAX array of a pytree; other leaves stay as they are.

    >>> import jax.numpy as jnp
    >>> tree_j2t({"w": jnp.ones(2), "name": "layer"})
    {'name': 'layer', 'w': tensor([1., 1.])}
    """
    return jax.tree.map(lambda leaf: j2t(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


def tree_t2j(tree: Any) -> Any:
    """`t2j` on every tensor of a pytree; other leaves stay as they are.

    >>> tree_t2j({"w": torch.ones(2), "name": "layer"})
    {'name': 'layer', 'w': Array([1., 1.], dtype=float32)}
    """
    return jax.tree.map(lambda leaf: t2j(leaf) if isinstance(leaf, torch.Tensor) else leaf, tree)
