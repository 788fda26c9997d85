"""CUDA streams: torch works on the stream XLA gave to the call, ordered after torch's own earlier work."""

from __future__ import annotations

import collections
import functools
from typing import Any, NamedTuple

import torch

from ._compat import current_stream_ids


class Entered(NamedTuple):
    """What `leave` restores: torch's device and stream; and the stream of the call."""

    device: int
    own: torch.cuda.Stream
    of_call: torch.cuda.Stream


def enter(pointer: int, device: int) -> Entered:
    """Make the stream at `pointer` torch's current stream on `device`. Nothing is synchronised.

    Weights that torch is still writing on its own stream are waited for by an event on the GPU.
    """
    if not torch.cuda.is_initialized():
        if not torch.cuda.is_available():
            raise RuntimeError(
                "XLA runs on a GPU but this PyTorch cannot use one.\n"
                "  Expected: a PyTorch build with CUDA (or ROCm)\n"
                f"  Got:      torch {torch.__version__}\n"
                "Install a CUDA build of PyTorch, or run on the CPU: "
                "`with jax.default_device(jax.devices('cpu')[0])`."
            )
        torch.cuda.init()
    own = _own_stream(*current_stream_ids(device))
    entered = Entered(torch.cuda.current_device(), own, _stream_at(pointer, device))
    _order(entered.own, entered.of_call, device)
    torch.cuda.set_stream(entered.of_call)  # which makes `device` current too
    return entered


def leave(entered: Entered) -> None:
    """Give torch its own stream back, ordered after the work of the call, whichever stream the function left behind."""
    device = entered.of_call.device_index
    try:
        _order(entered.of_call, entered.own, device)
    finally:
        torch.cuda.set_stream(entered.own)
        if entered.device != device:
            torch.cuda.set_device(entered.device)


# Objects for streams are remembered: making one takes longer than all the rest of `enter` and `leave`.


@functools.lru_cache(maxsize=64)
def _stream_at(pointer: int, device: int) -> torch.cuda.Stream:
    return torch.cuda.ExternalStream(pointer, device=device)


@functools.lru_cache(maxsize=64)
def _own_stream(stream_id: int, device_index: int, device_type: int) -> torch.cuda.Stream:
    """A stream of torch's. Made from its pointer it would not equal the user's object for it."""
    return torch.cuda.Stream(stream_id=stream_id, device_index=device_index, device_type=device_type)


# Events that are not in use, by device. Making one takes longer than recording it, and a thread of XLA's has no
# memory of its own between calls. What waits for an event waits for what was recorded when it began to.
_events: collections.defaultdict[int, collections.deque[Any]] = collections.defaultdict(collections.deque)


def _order(earlier: torch.cuda.Stream, later: torch.cuda.Stream, device: int) -> None:
    """Let what `later` is given next begin after what `earlier` was given."""
    if earlier == later:
        return
    free = _events[device]
    try:
        event = free.pop()
    except IndexError:
        event = torch.cuda.Event()
    event.record(earlier)
    event.wait(later)
    free.append(event)
