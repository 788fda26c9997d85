"""The devices, generators and streams that torch uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import torch


def torch_device() -> torch.device:
    """Where torch functions on JAX's default device run."""
    # A device, the name of a platform, or None.
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    platform = getattr(default, "platform", default) or jax.default_backend()
    on_gpu = platform in ("gpu", "cuda", "rocm") and torch.cuda.is_available()
    return _CUDA if on_gpu else _CPU


_CPU, _CUDA = torch.device("cpu"), torch.device("cuda")  # made once: a function mode of the user's sees them being made


def is_default_generator(generator: Any) -> bool:
    """Whether it is one of torch's default generators: operators get an object of their own for it."""
    defaults: list[Any] = [torch.default_generator, *(torch.cuda.default_generators[i] for i in torch_gpus())]
    return any(generator._cdata == default._cdata for default in defaults)


def torch_gpus() -> list[int]:
    """The GPUs that torch has begun to use: asking it for them would make it begin."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


# Torch's own functions in Python around these take as long again, twice in each call on a GPU.


def current_stream(device: int) -> tuple[int, int, int]:
    """Torch's current stream on a GPU: its id, its device, and the type of that."""
    stream: tuple[int, int, int] = torch._C._cuda_getCurrentStream(device)
    return stream


def set_stream(stream: tuple[int, int, int]) -> None:
    """Make it torch's current stream, and its device the current one."""
    torch._C._cuda_setStream(stream_id=stream[0], device_index=stream[1], device_type=stream[2])


_event = torch._C._CudaEventBase if hasattr(torch._C._CudaEventBase, "record") else torch.cuda.Event
record_event: Callable[[torch.cuda.Event, torch.cuda.Stream], None] = _event.record
wait_for_event: Callable[[torch.cuda.Event, torch.cuda.Stream], None] = _event.wait
