"""CUDA streams: torch works on the stream XLA gave to the call, ordered after torch's own earlier work."""

from __future__ import annotations

import collections
import functools
from typing import Any, NamedTuple

import torch

from .._compat import current_stream, record_event, set_stream, wait_for_event


class Stream(NamedTuple):
    """A CUDA stream as torch sets it, as an object, and where it is."""

    key: tuple[int, int, int]
    object: torch.cuda.Stream
    pointer: int


class Entered(NamedTuple):
    """What `leave` restores: torch's device and stream; and the stream of the call."""

    device: int
    own: Stream
    of_call: Stream


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
    entered = Entered(torch.cuda.current_device(), _own_stream(current_stream(device)), _stream_at(pointer, device))
    _order(entered.own, entered.of_call, device)
    set_stream(entered.of_call.key)  # which makes `device` current too
    return entered


def leave(entered: Entered) -> None:
    """Give torch its own stream back, ordered after the work of the call, whichever stream the function left behind."""
    device = entered.of_call.key[1]
    try:
        _order(entered.of_call, entered.own, device)
    finally:
        set_stream(entered.own.key)
        if entered.device != device:
            torch.cuda.set_device(entered.device)


# Streams are remembered: making an object takes longer than all the rest of `enter` and `leave`.


@functools.lru_cache(maxsize=64)
def _stream_at(pointer: int, device: int) -> Stream:
    stream = torch.cuda.ExternalStream(pointer, device=device)
    return Stream((stream.stream_id, stream.device_index, stream.device_type), stream, pointer)


@functools.lru_cache(maxsize=64)
def _own_stream(key: tuple[int, int, int]) -> Stream:
    """A stream of torch's. Made from its pointer it would not equal the user's object for it."""
    stream = torch.cuda.Stream(stream_id=key[0], device_index=key[1], device_type=key[2])
    return Stream(key, stream, stream.cuda_stream)


# Events that are not in use, by device. Making one takes longer than recording it, and a thread of XLA's has no
# memory of its own between calls. What waits for an event waits for what was recorded when it began to.
_events: collections.defaultdict[int, collections.deque[Any]] = collections.defaultdict(collections.deque)


def _order(earlier: Stream, later: Stream, device: int) -> None:
    """Let what `later` is given next begin after what `earlier` was given."""
    if earlier.pointer == later.pointer:
        return
    free = _events[device]
    try:
        event = free.pop()
    except IndexError:
        event = torch.cuda.Event()
    record_event(event, earlier.object)
    wait_for_event(event, later.object)
    free.append(event)
