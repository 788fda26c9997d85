"""Memory that crosses between JAX and torch."""

from __future__ import annotations

from typing import Any

import jax
import jax.extend.core
import torch

from .jax_primitives import XLA_ERRORS


class _OnHost:
    """A CPU tensor for `jax.dlpack`, as one of the CPU even if its memory is pinned, which torch calls the GPU's."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: Any) -> Any:
        return torch._C._to_dlpack(self._tensor)


def array_over(tensor: torch.Tensor) -> jax.Array:
    """The memory of a contiguous tensor as a JAX array on the same device; see `_uncommitted`."""
    # Strides of dimensions of size 1 may be any, but jax 0.7 refuses some; here they are as JAX counts them.
    tensor = tensor.view(-1).view(tensor.shape)
    with torch.cuda.device_of(tensor):  # torch exports from its current device alone, and JAX may change that
        try:
            return _from_dlpack(tensor)
        except XLA_ERRORS:  # jax 0.7 with torch before 2.9, which exports strides of its own for them: a copy
            if 1 not in tensor.shape:
                raise
            return _from_dlpack(tensor.view(-1)).reshape(tensor.shape)


def _from_dlpack(tensor: torch.Tensor) -> jax.Array:
    array = jax.dlpack.from_dlpack(_OnHost(tensor) if tensor.device.type == "cpu" else tensor)
    return _uncommitted(array) if _is_default(*array.devices()) else array


def _uncommitted(array: jax.Array) -> jax.Array:
    """The same memory as an array that follows others to their devices, as new arrays of JAX do.

    `jax.dlpack.from_dlpack` commits to a device, and no public function takes that back without a copy. The call is
    what `jax.Array` is made with since jax 0.4; where it changes, arrays stay committed.
    """
    make: Any = type(array)
    try:
        return make(array.aval, array.sharding, [array], committed=False)
    except (TypeError, AttributeError):
        return array


def _is_default(device: Any) -> bool:
    """Whether JAX makes new arrays on `device`. All CPU devices are one to torch, so any of them will do.

    Elsewhere an array that is not committed would be moved to the default device by every computation.
    """
    default = jax.config.jax_default_device  # type: ignore[attr-defined]  # a device, the name of a platform, or None
    if device.platform == "cpu":
        return (getattr(default, "platform", default) or jax.default_backend()) == "cpu"
    return device == (default if isinstance(default, jax.Device) else jax.local_devices(backend=default)[0])


def with_foreign_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor of its own, which cannot resize it."""
    twin: torch.Tensor = torch._C._from_dlpack(torch._C._to_dlpack(tensor))
    if twin.stride() != tensor.stride():
        # Torch before 2.9 exports a stride of 1 for dimensions of size 1, which makes images with one channel
        # channels-last ones, and so the results of convolutions.
        with torch._C._AutoDispatchBelowADInplaceOrView():  # the version stays 0
            twin.as_strided_(tensor.size(), tensor.stride())
    return twin


def torch_exchange_api() -> Any | None:
    """Torch's table of DLPack functions (torch 2.10 and newer), else None."""
    return getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
