"""CUDA streams: torch works on the stream of XLA's call, ordered after torch's own earlier work."""

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
    """What `leave` restores, torch's device and stream; and the stream of the call."""

    device: int
    own: Stream
    of_call: Stream


def enter(pointer: int, device: int) -> Entered:
    """Make the stream at `pointer` torch's current stream on `device`, without synchronising.

    Work on that stream waits on the GPU, by an event, for what torch has queued on its own stream, such as weights.
    """
    entered = _found(pointer, device)
    order_in(entered)
    set_stream(entered.of_call.key)  # which makes `device` current too
    return entered


def enter_unordered(pointer: int, device: int) -> Entered:
    """As `enter`, but without the event. `restore` undoes it, or `order_in` and then `leave`."""
    entered = _found(pointer, device)
    set_stream(entered.of_call.key)
    return entered


def order_in(entered: Entered) -> None:
    """Have the stream of a call wait for what torch has queued on its own stream."""
    _order(entered.own, entered.of_call, entered.of_call.key[1])


def leave(entered: Entered) -> None:
    """Make torch's own stream current again, ordered after the work of the call."""
    try:
        _order(entered.of_call, entered.own, entered.of_call.key[1])
    finally:
        restore(entered)


def restore(entered: Entered) -> None:
    """Make torch's own stream current again."""
    set_stream(entered.own.key)
    if entered.device != entered.of_call.key[1]:
        torch.cuda.set_device(entered.device)


def _found(pointer: int, device: int) -> Entered:
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
    return Entered(torch.cuda.current_device(), _own_stream(current_stream(device)), _stream_at(pointer, device))


# Streams are cached: making the object takes longer than the rest of `enter` and `leave`.


@functools.lru_cache(maxsize=64)
def _stream_at(pointer: int, device: int) -> Stream:
    stream = torch.cuda.ExternalStream(pointer, device=device)
    return Stream((stream.stream_id, stream.device_index, stream.device_type), stream, pointer)


@functools.lru_cache(maxsize=64)
def _own_stream(key: tuple[int, int, int]) -> Stream:
    """A stream of torch. An `ExternalStream` of its pointer would not equal the user's object."""
    stream = torch.cuda.Stream(stream_id=key[0], device_index=key[1], device_type=key[2])
    return Stream(key, stream, stream.cuda_stream)


# Events that are not in use, by device, because making one takes longer than recording it. They are not kept by thread:
# XLA may run each call on another one. An event can be used again as soon as a stream waits for it: the stream waits
# for what had been recorded by then (`cudaStreamWaitEvent`).
_events: collections.defaultdict[int, collections.deque[Any]] = collections.defaultdict(collections.deque)


def _order(earlier: Stream, later: Stream, device: int) -> None:
    """Have what is queued on `later` from now on wait for what is queued on `earlier`."""
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
