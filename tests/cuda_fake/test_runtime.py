"""The fake runtime itself: what the other tests rely on."""

from __future__ import annotations

import ctypes
import threading

import pytest
import torch
from t2j_core.testing import abi_layout

from . import runtime, xla_ffi
from .executables import STREAM, XlaError, executable, ones


def stream(pointer=STREAM):
    return torch.cuda.stream(torch.cuda.ExternalStream(pointer))


def refused(call):
    with pytest.raises(RuntimeError) as caught:
        call()
    return str(caught.value)


def test_the_structures_of_xla_are_those_of_the_native_part():
    layout, compared = abi_layout(), 0
    for key, number in layout.items():
        name, _, field = key.removeprefix("ffi::").partition(".")
        structure = getattr(xla_ffi, name, None)
        if structure is None:
            continue
        assert number == (getattr(structure, field).offset if field else ctypes.sizeof(structure)), key
        compared += 1
    assert compared > 40


def test_copies_and_memsets_are_real_and_kernels_are_not():
    t = torch.arange(4.0).to("cuda")
    assert t.clone().cpu().tolist() == [0, 1, 2, 3]
    assert torch.sin(t).cpu().tolist() != torch.sin(torch.arange(4.0)).tolist()
    assert runtime.take().of("cudaLaunchKernel")


def test_the_log_tells_stream_device_and_thread():
    t = torch.zeros(8, device="cuda:1")
    runtime.take()
    threads = []

    def copies():
        with torch.cuda.device(1), torch.cuda.stream(torch.cuda.ExternalStream(STREAM, device=1)):
            t.clone()
        threads.append(threading.get_native_id())

    thread = threading.Thread(target=copies)
    thread.start()
    thread.join()
    (call,) = runtime.take().of("cudaMemcpyAsync")
    assert (call.stream, call.device, call.thread, call.size) == (STREAM, 1, threads[0], 32)


def test_a_wait_tells_what_its_event_was_recorded_on_last():
    event, other = torch.cuda.Event(), torch.cuda.ExternalStream(0xEEE0)
    for pointer in (STREAM, 0xDDD0):
        event.record(torch.cuda.ExternalStream(pointer))
    other.wait_event(event)
    assert runtime.take().joins() == [(0xEEE0, 0xDDD0)]


def test_the_call_that_a_test_chose_fails_and_no_other():
    event = torch.cuda.Event()
    event.record()
    with runtime.failing("cudaEventRecord", after=1, times=2):
        event.record()
        for _ in range(2):
            refused(event.record)
        event.record()
    with pytest.raises(AssertionError, match="not called"), runtime.failing("cudaEventRecord"):
        pass


def test_memory_ends():
    with runtime.little_memory(8 << 20), pytest.raises(torch.OutOfMemoryError):
        torch.empty(16 << 20, dtype=torch.uint8, device="cuda")
    torch.empty(16 << 20, dtype=torch.uint8, device="cuda")


# --- capture ----------------------------------------------------------------------------------------------------------

MODES = pytest.mark.parametrize("mode", [runtime.GLOBAL, runtime.OF_THREAD, runtime.RELAXED])


@MODES
def test_a_stream_that_is_captured_says_so(mode):
    with stream():
        assert not torch.cuda.is_current_stream_capturing()
        with runtime.capturing(STREAM, mode):
            assert torch.cuda.is_current_stream_capturing()
        assert not torch.cuda.is_current_stream_capturing()


@MODES
def test_a_stream_that_is_captured_cannot_be_waited_for(mode):
    event = torch.cuda.Event()
    captured = torch.cuda.ExternalStream(STREAM)
    for wait in (captured.synchronize, captured.query, lambda: (event.record(captured), event.query())):
        with runtime.capturing(STREAM, mode):
            refused(wait)


def test_what_is_captured_does_not_run():
    t = torch.arange(4.0).to("cuda")
    out = torch.zeros(4).to("cuda")
    with stream(), runtime.capturing(STREAM):
        out.copy_(t)
    assert out.cpu().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("mode", "is_own_thread", "is_refused"),
    [
        (runtime.GLOBAL, True, True),
        (runtime.GLOBAL, False, True),
        (runtime.OF_THREAD, True, True),
        (runtime.OF_THREAD, False, False),
        (runtime.RELAXED, True, False),
        (runtime.RELAXED, False, False),
    ],
)
def test_the_mode_decides_what_else_is_refused(mode, is_own_thread, is_refused):
    """As `cudaStreamCaptureMode` says; torch itself allocates in relaxed mode."""
    fake, error = runtime.library(), []
    fake.cudaMalloc.argtypes = ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t
    for call in (lambda: fake.cudaMalloc(ctypes.byref(ctypes.c_void_p()), 8), fake.cudaDeviceSynchronize):
        with runtime.capturing(STREAM, mode):
            if is_own_thread:
                error.append(call())
            else:
                thread = threading.Thread(target=lambda call=call: error.append(call()))
                thread.start()
                thread.join()
    assert [bool(number) for number in error] == [is_refused] * 2


def test_events_join_streams_to_a_capture_and_do_not_leave_it():
    side, outside = torch.cuda.ExternalStream(0xDDD0), torch.cuda.ExternalStream(0xEEE0)
    captured, before = torch.cuda.ExternalStream(STREAM), torch.cuda.Event()
    before.record(outside)
    with runtime.capturing(STREAM):
        side.wait_stream(captured)
        with torch.cuda.stream(side):
            assert torch.cuda.is_current_stream_capturing()
    with runtime.capturing(STREAM):
        refused(lambda: captured.wait_event(before))


def test_a_plain_call_in_a_capture_is_an_error_of_cuda():
    """XLA keeps calls of t2j out of its command buffers: they have not the trait that allows it."""
    x = ones(4)
    call = executable(lambda t: (t.clone(),), [x], [x])
    for _ in range(2):
        call([x])
    with runtime.capturing(STREAM), pytest.raises(XlaError, match="error 905"):  # cudaErrorStreamCaptureIsolation
        call([x])
    assert call([x])[0].tolist() == [1.0] * 4
