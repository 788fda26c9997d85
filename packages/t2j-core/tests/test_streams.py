"""Torch's device and stream around a call on a GPU, against a stand-in for CUDA that notes what it is asked to do."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from common import raises
from t2j_core import _compat
from t2j_core._run import streams

CUDA = 1  # torch's number for this type of device


class Stream:
    """One of torch's own has an id; that of an external one is its pointer."""

    def __init__(self, stream_id, device_index, device_type=CUDA):
        self.stream_id, self.device_index, self.device_type = stream_id, device_index, device_type
        self.cuda_stream = stream_id

    @property
    def key(self):
        return self.stream_id, self.device_index, self.device_type


class Cuda:
    """Devices with one current stream each; notes which stream waits for which: pairs of their pointers."""

    def __init__(self):
        self.device, self.streams = 0, [(0, 0, CUDA), (0, 1, CUDA)]
        self.waits, self.events_made, self.fails = [], 0, False

    def install(self, monkeypatch):
        cuda = self

        class Event:
            def __init__(self):
                cuda.events_made += 1

        def record(event, stream):
            if cuda.fails:
                raise RuntimeError("the event failed")
            event.recorded = stream.cuda_stream

        def set_stream(key):
            self.streams[key[1]] = key
            self.device = key[1]

        for name, value in {
            "is_initialized": lambda: True,
            "current_device": lambda: self.device,
            "set_device": lambda device: setattr(self, "device", device),
            "Stream": Stream,
            "ExternalStream": lambda pointer, device: Stream(pointer, device),
            "Event": Event,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        for name, value in {
            "current_stream": lambda device: self.streams[device],
            "set_stream": set_stream,
            "record_event": record,
            "wait_for_event": lambda event, stream: self.waits.append((stream.cuda_stream, event.recorded)),
            "_events": {0: deque(), 1: deque()},
        }.items():
            monkeypatch.setattr(streams, name, value)
        return self


@pytest.fixture
def cuda(monkeypatch):
    for cached in (streams._stream_at, streams._own_stream):
        cached.cache_clear()
    yield Cuda().install(monkeypatch)
    for cached in (streams._stream_at, streams._own_stream):
        cached.cache_clear()


@pytest.mark.parametrize("device", [0, 1])
def test_a_call_is_ordered_after_torch_and_torch_after_the_call(cuda, device):
    entered = streams.enter(77, device)
    assert (cuda.device, cuda.streams[device]) == (device, (77, device, CUDA))
    assert cuda.waits == [(77, 0)]
    streams.leave(entered)
    assert (cuda.device, cuda.streams[device]) == (0, (0, device, CUDA))
    assert cuda.waits == [(77, 0), (0, 77)]


def test_a_stream_of_the_users_is_restored(cuda):
    cuda.streams[0] = (5, 0, CUDA)
    streams.leave(streams.enter(77, 0))
    assert cuda.streams[0] == (5, 0, CUDA)
    assert cuda.waits == [(77, 5), (5, 77)]


def test_a_stream_that_is_torchs_already_waits_for_nothing(cuda):
    cuda.streams[0] = (77, 0, CUDA)
    streams.leave(streams.enter(77, 0))
    assert cuda.waits == []


def test_a_function_that_changes_stream_and_device_leaves_neither_behind(cuda):
    entered = streams.enter(77, 0)
    cuda.streams[:], cuda.device = [(8, 0, CUDA), (9, 1, CUDA)], 1
    streams.leave(entered)
    assert (cuda.device, cuda.streams[0]) == (0, (0, 0, CUDA))
    assert cuda.waits[-1] == (0, 77)


def test_torch_gets_its_stream_and_device_back_where_an_event_fails(cuda):
    entered = streams.enter(77, 1)
    cuda.fails = True
    with pytest.raises(RuntimeError, match="the event failed"):
        streams.leave(entered)
    assert (cuda.device, cuda.streams[1]) == (0, (0, 1, CUDA))


def test_events_are_used_again(cuda):
    for _ in range(10):
        streams.leave(streams.enter(77, 1))
    assert cuda.events_made == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has a GPU")
def test_torch_without_a_gpu_says_what_to_do():
    with raises(RuntimeError, what="GPU", expected="CUDA", got="torch ", remedy=("Install", "on the CPU")):
        streams.enter(1, 0)


def test_the_device_of_torch_follows_that_of_jax(monkeypatch):
    import jax

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _compat.torch_device().type == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _compat.torch_device().type == "cuda"
    with jax.default_device(jax.devices("cpu")[0]):
        assert _compat.torch_device().type == "cpu"
