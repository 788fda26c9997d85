"""CUDA streams: torch works on the stream XLA gave to the call, ordered after torch's own earlier work."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch


class Entered(NamedTuple):
    """What `leave` restores."""

    device: int
    stream: Any


@functools.lru_cache(maxsize=64)
def _external_stream(pointer: int, device: int) -> torch.cuda.Stream:
    return torch.cuda.ExternalStream(pointer, device=device)


def enter(pointer: int, device: int) -> Entered:
    """Make the stream at `pointer` torch's current stream on `device`. Nothing is synchronised.

    Weights that torch is still writing on its own stream are waited for by an event on the GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError(
            "XLA runs on a GPU but this PyTorch cannot use one.\n"
            "  Expected: a PyTorch build with CUDA (or ROCm)\n"
            f"  Got:      torch {torch.__version__}\n"
            "Install a CUDA build of PyTorch, or run on the CPU: `with jax.default_device(jax.devices('cpu')[0])`."
        )
    before = Entered(torch.cuda.current_device(), torch.cuda.current_stream(device))
    torch.cuda.set_device(device)
    stream = _external_stream(pointer, device)
    stream.wait_stream(before.stream)
    torch.cuda.set_stream(stream)
    return before


def leave(before: Entered) -> None:
    """Give torch its own stream back, ordered after the work of the call."""
    before.stream.wait_stream(torch.cuda.current_stream(before.stream.device))
    torch.cuda.set_stream(before.stream)
    torch.cuda.set_device(before.device)
