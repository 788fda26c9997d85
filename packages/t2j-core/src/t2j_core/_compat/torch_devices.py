"""The devices, generators and streams that torch uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import torch


def torch_device() -> torch.device:
    """The torch device that corresponds to JAX's default device."""
    # A device, the name of a platform, or None.
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    platform = getattr(default, "platform", default) or jax.default_backend()
    on_gpu = platform in ("gpu", "cuda", "rocm") and torch.cuda.is_available()
    return _CUDA if on_gpu else _CPU


def device_of(platforms: Sequence[str]) -> torch.device:
    """The torch device that a program for these platforms of JAX runs on, or one of them."""
    on_gpu = set(platforms) & {"cuda", "rocm"} and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else _CPU


_CPU, _CUDA = torch.device("cpu"), torch.device("cuda")  # made once: a user's function mode sees each construction


def is_default_generator(generator: torch.Generator) -> bool:
    """Whether it is one of torch's default generators. Operators get another Python object for the same one."""
    defaults: list[torch.Generator] = [
        torch.default_generator,
        *(torch.cuda.default_generators[i] for i in torch_gpus()),
    ]
    return any(generator._cdata == default._cdata for default in defaults)  # type: ignore[attr-defined]


def torch_gpus() -> list[int]:
    """The GPUs that torch uses; none before it has initialised CUDA, which asking for their generators would do."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


# `torch.cuda.current_stream` and `torch.cuda.set_stream` take twice as long, and each runs twice in a call on a GPU.


def current_stream(device: int) -> tuple[int, int, int]:
    """Torch's current stream on a GPU: its id, the index of its device, and the type of the device."""
    stream: tuple[int, int, int] = torch._C._cuda_getCurrentStream(device)
    return stream


def set_stream(stream: tuple[int, int, int]) -> None:
    """Make a stream torch's current one, and its device the current device."""
    torch._C._cuda_setStream(stream_id=stream[0], device_index=stream[1], device_type=stream[2])


_event = torch._C._CudaEventBase if hasattr(torch._C._CudaEventBase, "record") else torch.cuda.Event
record_event: Callable[[torch.cuda.Event, torch.cuda.Stream], None] = _event.record
wait_for_event: Callable[[torch.cuda.Event, torch.cuda.Stream], None] = _event.wait
