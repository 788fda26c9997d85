"""Memory that JAX and torch share through DLPack."""

from __future__ import annotations

from typing import Any

import jax
import torch

from .jax_primitives import XLA_ERRORS


class _OnHost:
    """A CPU tensor for `jax.dlpack`. Torch exports pinned memory as of the GPU, which JAX refuses.

    See https://github.com/jax-ml/jax/issues/22346.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: object) -> Any:
        return torch._C._to_dlpack(self._tensor)


def array_over(tensor: torch.Tensor) -> jax.Array:
    """The memory of a contiguous tensor as a JAX array on the same device; see `_uncommitted`."""
    # jax 0.7 refuses some strides of dimensions of size 1, which may be any; these are as JAX computes them.
    tensor = tensor.view(-1).view(tensor.shape)
    with torch.cuda.device_of(tensor):  # torch exports from its current device only, and JAX may change that
        try:
            return _from_dlpack(tensor)
        except XLA_ERRORS:  # jax 0.7 with torch before 2.9, which changes those strides (see below): a copy
            if 1 not in tensor.shape:
                raise
            return _from_dlpack(tensor.view(-1)).reshape(tensor.shape)


def _from_dlpack(tensor: torch.Tensor) -> jax.Array:
    array = jax.dlpack.from_dlpack(_OnHost(tensor) if tensor.device.type == "cpu" else tensor)
    return _uncommitted(array) if _is_default(*array.devices()) else array


def _uncommitted(array: jax.Array) -> jax.Array:
    """The same memory as an uncommitted array, which follows others to their devices as new arrays of JAX do.

    `jax.dlpack.from_dlpack` commits to a device, and no public function undoes that without a copy. The signature of
    `ArrayImpl` in jax/_src/array.py is the same since jax 0.4; if it changes, arrays stay committed.
    """
    make: Any = type(array)
    try:
        return make(array.aval, array.sharding, [array], committed=False)
    except (TypeError, AttributeError):
        return array


def _is_default(device: jax.Device) -> bool:
    """Whether JAX makes new arrays on `device`. Torch has one CPU device, so any of JAX's CPU devices counts.

    On another device an uncommitted array would be moved to the default device by every computation.
    """
    default = jax.config.jax_default_device  # type: ignore[attr-defined]  # a device, the name of a platform, or None
    if device.platform == "cpu":
        return (getattr(default, "platform", default) or jax.default_backend()) == "cpu"
    return device == (default if isinstance(default, jax.Device) else jax.local_devices(backend=default)[0])


def with_foreign_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a new tensor, which cannot resize it."""
    twin: torch.Tensor = torch._C._from_dlpack(torch._C._to_dlpack(tensor))
    if twin.stride() != tensor.stride():
        # Torch before 2.9 exports a stride of 1 for dimensions of size 1 (`toDLPack` in aten/src/ATen/DLConvertor.cpp,
        # https://github.com/pytorch/pytorch/pull/163282). Images with one channel would become channels-last, and with
        # them the results of convolutions.
        with torch._C._AutoDispatchBelowADInplaceOrView():  # the version stays 0
            twin.as_strided_(tensor.size(), tensor.stride())
    return twin


def crosses_as_bytes(dtype: torch.dtype) -> bool:
    """Whether this torch's DLPack lacks a dtype, whose tensors then cross as bytes: float8, before torch 2.10."""
    return torch_exchange_api() is None and str(dtype).startswith("torch.float8")


def torch_exchange_api() -> Any | None:
    """Torch's table of DLPack functions; None before torch 2.10 (https://github.com/pytorch/pytorch/pull/169724)."""
    return getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
