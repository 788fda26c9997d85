"""Arrays between JAX and PyTorch outside `jit`: DLPack, without a copy where both sides allow."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import torch

from .. import _compat
from .._base.dtypes import canonical, dtype_j2t, row_of_torch
from .._base.errors import ArgumentError, describe

Via = Literal["dlpack", "host", "cpu", "numpy"]


def j2t(array: jax.Array, via: Via = "dlpack") -> torch.Tensor:
    """The JAX array as a torch tensor over the same memory.

    Args:
      array: a concrete JAX array on one device, of any shape and any dtype that torch has.
      via: `"dlpack"` shares the memory; `"host"` copies through the host, to the tensor's own memory (`"cpu"` and
        `"numpy"` mean the same).

    Returns:
      A tensor of the same shape, dtype and device. JAX arrays are immutable, so do not write into one that shares
      their memory.

    Raises:
      ArgumentError: for a tracer, an array spread over several devices, something that is not a JAX array, or an
        unknown `via`.
      DTypeError: for a dtype that torch does not have.

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
    return _over_host(_shared(array)) if _is_copy("j2t", via) else _shared(array)


def _over_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cpu", copy=True).to(tensor.device)


def _is_copy(function: str, via: str) -> bool:
    """Whether `via` asks for a copy. Raises for an unknown value."""
    if via not in get_args(Via):
        raise ArgumentError(
            describe(
                f"`via` of `{function}` is unknown.",
                expected='"dlpack", which shares the memory, or "host", which copies',
                got=repr(via),
                remedy="Choose one.",
            )
        )
    return via != "dlpack"


def _shared(array: jax.Array) -> torch.Tensor:
    dtype = dtype_j2t(array.dtype)
    if _compat.crosses_as_bytes(dtype):
        return _from_dlpack(array.view("uint8")).view(dtype)
    return _from_dlpack(array)


def _from_dlpack(array: jax.Array) -> torch.Tensor:
    if array.size == 0:
        (device,) = array.devices()
        where = "cpu" if device.platform == "cpu" else f"cuda:{device.local_hardware_id}"
        return torch.empty(array.shape, dtype=dtype_j2t(array.dtype), device=where)
    return torch.utils.dlpack.from_dlpack(array)


def t2j(tensor: torch.Tensor, via: Via = "dlpack") -> jax.Array:
    """The torch tensor as a JAX array, over the same memory where it is contiguous and of a dtype JAX stores.

    A tensor that does not begin where XLA can read it, such as `x[1:]`, is copied: XLA's arguments lie on multiples of
    16 bytes on a GPU, of 64 on a CPU.

    Args:
      tensor: a dense tensor of any shape and any dtype that JAX has. Its autograd history is left behind.
      via: `"dlpack"` shares the memory where it can; `"host"` (or `"cpu"`, `"numpy"`) copies through the host.

    Returns:
      An array of the same shape and device; 64-bit dtypes become 32-bit while x64 is off.

    Raises:
      ArgumentError: for something that is not a dense torch tensor, or an unknown `via`.
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
            describe("`t2j` takes a dense torch tensor.", expected="torch.Tensor", got=got, remedy=_dense(tensor))
        )
    if not _compat.has_data(tensor):
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
    if _is_copy("t2j", via):
        tensor = _over_host(tensor)
    stored = dtype_j2t(canonical(row.jax))
    tensor = _aligned(tensor.to(stored).contiguous())
    if _compat.crosses_as_bytes(stored):
        return _compat.array_over(tensor.view(torch.uint8)).view(canonical(row.jax))
    return _compat.array_over(tensor)


def _dense(given: object) -> str:
    """How to make a dense tensor of what was given, for an error."""
    if not isinstance(given, torch.Tensor):
        return "Use `torch.as_tensor`."
    if given.is_meta:
        return "Pass a tensor that holds data; for a shape alone, a `jax.ShapeDtypeStruct` as an example."
    return "Use `tensor.to_padded_tensor(0.0)`." if given.is_nested else "Use `tensor.to_dense()`."


_GPU_ALIGNMENT = 16  # `kEntryParameterAlignBytes`; `CheckAlignment` in xla/service/gpu refuses other arguments


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy where XLA's programs refuse its memory. On a CPU JAX copies by itself."""
    is_refused = tensor.is_cuda and tensor.numel() and tensor.data_ptr() % _GPU_ALIGNMENT
    return tensor.clone() if is_refused else tensor


def tree_j2t(tree: object, via: Via = "dlpack") -> Any:
    """`j2t` on every JAX array of a pytree; other leaves stay as they are.

    Args:
      tree: any pytree.
      via: as in `j2t`.

    Returns:
      The same tree with tensors in the places of its arrays.

    >>> import jax.numpy as jnp
    >>> tree_j2t({"w": jnp.ones(2), "name": "layer"})
    {'name': 'layer', 'w': tensor([1., 1.])}
    """
    return jax.tree.map(lambda leaf: j2t(leaf, via) if isinstance(leaf, jax.Array) else leaf, tree)


def tree_t2j(tree: object, via: Via = "dlpack") -> Any:
    """`t2j` on every tensor of a pytree; other leaves stay as they are.

    Args:
      tree: any pytree.
      via: as in `t2j`.

    Returns:
      The same tree with arrays in the places of its tensors.

    >>> tree_t2j({"w": torch.ones(2), "name": "layer"})
    {'name': 'layer', 'w': Array([1., 1.], dtype=float32)}
    """
    return jax.tree.map(lambda leaf: t2j(leaf, via) if isinstance(leaf, torch.Tensor) else leaf, tree)
