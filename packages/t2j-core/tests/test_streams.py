"""Torch's device and stream around a call on a GPU, against a stand-in for CUDA that notes what it is asked to do."""

from __future__ import annotations

from collections import deque, namedtuple

import pytest
import torch
from t2j_core import _compat, _streams

Stream = namedtuple("Stream", "pointer device_index", defaults=(0,))


class Cuda:
    """Devices with one stream of torch each; a stream knows which work of which stream it waits for."""

    def __init__(self):
        self.device, self.streams = 0, [Stream(0, 0), Stream(0, 1)]
        self.waits, self.events_made = [], 0

    def install(self, monkeypatch):
        cuda = self

        class Event:
            def __init__(self):
                cuda.events_made += 1

            def record(self, stream):
                self.recorded = stream

        monkeypatch.setattr(
            Stream, "wait_event", lambda stream, e: cuda.waits.append((stream, e.recorded)), raising=False
        )

        def set_stream(stream):
            self.streams[stream.device_index] = stream
            self.device = stream.device_index

        for name, value in {
            "is_initialized": lambda: True,
            "current_device": lambda: self.device,
            "current_stream": lambda device: self.streams[device],
            "set_device": lambda device: setattr(self, "device", device),
            "set_stream": set_stream,
            "ExternalStream": lambda pointer, device: Stream(pointer, device),
            "Event": Event,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(_streams, "_events", {0: deque(), 1: deque()})
        return self


@pytest.fixture
def cuda(monkeypatch):
    _streams._external_stream.cache_clear()
    yield Cuda().install(monkeypatch)
    _streams._external_stream.cache_clear()


@pytest.mark.parametrize("device", [0, 1])
def test_a_call_is_ordered_after_torch_and_torch_after_the_call(cuda, device):
    own, of_call = Stream(0, device), Stream(77, device)
    entered = _streams.enter(77, device)
    assert (cuda.device, cuda.streams[device]) == (device, of_call)
    assert cuda.waits == [(of_call, own)]
    _streams.leave(entered)
    assert (cuda.device, cuda.streams[device]) == (0, own)
    assert cuda.waits == [(of_call, own), (own, of_call)]


def test_a_stream_of_the_users_is_restored(cuda):
    mine = cuda.streams[0] = Stream(5, 0)
    _streams.leave(_streams.enter(77, 0))
    assert cuda.streams[0] == mine
    assert cuda.waits == [(Stream(77, 0), mine), (mine, Stream(77, 0))]


def test_a_stream_that_is_torchs_already_waits_for_nothing(cuda):
    cuda.streams[0] = Stream(77, 0)
    _streams.leave(_streams.enter(77, 0))
    assert cuda.waits == []


def test_a_function_that_changes_stream_and_device_leaves_neither_behind(cuda):
    entered = _streams.enter(77, 0)
    torch.cuda.set_stream(Stream(9, 1))
    cuda.streams[0] = Stream(8, 0)
    _streams.leave(entered)
    assert (cuda.device, cuda.streams[0]) == (0, Stream(0, 0))
    assert cuda.waits[-1] == (Stream(0, 0), Stream(77, 0))


def test_events_are_used_again(cuda):
    for _ in range(10):
        _streams.leave(_streams.enter(77, 1))
    assert cuda.events_made == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has a GPU")
def test_torch_without_a_gpu_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"Got:      torch .*\nInstall a CUDA build of PyTorch, or run on the CPU"):
        _streams.enter(1, 0)


def test_the_device_of_torch_follows_that_of_jax(monkeypatch):
    import jax

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _compat.torch_device().type == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _compat.torch_device().type == "cuda"
    with jax.default_device(jax.devices("cpu")[0]):
        assert _compat.torch_device().type == "cpu"
