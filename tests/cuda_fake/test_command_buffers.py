"""What a call does that XLA may capture (`command_buffer=True`): before any capture, in one, and outside of one."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch

from . import runtime
from .executables import OTHER, STREAM, Executable, XlaError, executable, metadata_of, ones

X = ones(64, 64)
BYTES = X.nbytes
COMPATIBLE = 1  # XLA_FFI_HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE


def site(function, **options) -> Executable:
    """A call that XLA may capture, before XLA has initialised it."""
    return executable(function, [X], [X], is_captured=True, **options)


def warm(function, device=0, **options) -> Executable:
    call = site(function, **options)
    call.initialize([X], device=device)
    return call


def captured(call, device=0):
    """The log of a call in a capture, as XLA makes it: on its trace stream, and with the capture of that thread."""
    with runtime.capturing(OTHER):
        runtime.take()
        call([X], stream=OTHER, device=device)
        log = runtime.take()
        assert runtime.library().cudaStreamEndCapture(OTHER, None) == 0, "the capture is not valid"
    return log


def product(t):
    return (torch.sin(t) * 2 + 1,)


def test_the_handler_says_that_it_may_be_captured():
    assert metadata_of("cuda captured").traits == COMPATIBLE
    assert metadata_of("cuda").traits == 0


def test_a_capture_enqueues_work_and_nothing_else():
    log = captured(warm(product))
    assert log.of("cudaEventRecord", "cudaStreamWaitEvent", "cudaEventCreateWithFlags", "cudaEventQuery") == ()
    assert log.waits() == []
    assert len(log.launches()) == 4  # three operations, and the copy of the result
    assert {call.stream for call in log.launches()} == {OTHER}
    assert not any(call.error for call in log)


def test_a_second_capture_does_the_same_with_the_memory_of_the_first():
    call = warm(product)
    first, second = captured(call), captured(call)
    assert first.launches().names() == second.launches().names()
    assert second.of("cudaMalloc", "cudaFree") == ()


@pytest.mark.parametrize("device", [0, 1])
def test_it_is_warmed_up_once_on_each_device(device):
    runs = []

    def noted(t):
        runs.append((t.device.index, torch.cuda.current_stream(t.device).cuda_stream, bool(t.shape == X.shape)))
        return product(t)

    call = site(noted)
    for _ in range(3):
        call.initialize([X], device=device)
    assert runs == [(device, STREAM, True)]
    call.initialize([X], device=1 - device)
    assert runs[1:] == [(1 - device, STREAM, True)]


def test_it_is_warmed_up_once_on_each_thread():
    """The handle of cuBLAS belongs to a thread, and none can be made in a capture (pytorch/pytorch#99397)."""
    threads = []
    call = site(lambda t: (threads.append(threading.get_ident()), product(t))[1])
    for _ in range(2):
        call.initialize([X])
    others = threading.Thread(target=lambda: [call.initialize([X]) for _ in range(2)])
    others.start()
    others.join()
    assert threads == [threading.get_ident(), others.ident]


def test_a_device_that_is_warm_is_not_touched_again():
    call = warm(product)
    runtime.take()
    call.initialize([X])
    assert runtime.take() == ()


def test_the_warm_up_does_not_see_the_memory_of_xla():
    """XLA initialises a program before its operands have been computed."""
    x, seen = ones(64, 64), []
    call = executable(lambda t: (seen.append(t.data_ptr()), t + 1)[1:], [x], [x], is_captured=True)
    call.initialize([x])
    assert x.ctypes.data not in seen
    assert len(seen) == 1


def test_outside_of_a_capture_it_is_a_call_like_any_other():
    """As while JAX records a profile."""
    call = warm(product)
    runtime.take()
    call([X])
    log = runtime.take()
    assert log.joins() == [(STREAM, 0), (0, STREAM)]
    assert {c.stream for c in log.launches()} == {STREAM}


# --- memory ----------------------------------------------------------------------------------------------------------


def addresses(seen):
    def function(t):
        y = torch.sin(t)
        seen.append(y.data_ptr())
        return (y + 1,)

    return function


def test_captures_of_a_site_use_the_same_memory_and_nothing_else_does():
    seen, others = [], []
    call, other = warm(addresses(seen)), warm(addresses(others))
    del seen[:], others[:]
    for _ in range(3):
        captured(call)
        others += [torch.empty(64, 64, device="cuda").data_ptr() for _ in range(8)]
        captured(other)
    assert len(set(seen)) == 1
    assert not set(seen) & set(others)


def test_a_backward_in_a_capture_allocates_in_the_same_pool():
    """It runs on another thread."""

    def gradient(t):
        with torch.enable_grad():
            x = t.detach().requires_grad_()
            return torch.autograd.grad(torch.sin(x).cos().sum(), x)

    call = warm(gradient)
    log = captured(call)
    assert len({c.thread for c in log.launches()}) == 2
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    captured(call)
    assert torch.cuda.mem_get_info()[0] == free, "a later capture needs no more memory"


def test_memory_is_freed_with_the_executable():
    call = warm(product)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(2):
        captured(call)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() > before
    call.close()
    del call
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == before


def test_captures_hold_nothing_of_compiled_code():
    """Its operations cannot be seen: what they return looks as if it had been there before the call."""
    unseen = _outside_of_modes(torch.sin)
    call = warm(lambda t: (unseen(t) + 1,))
    captured(call)
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        captured(call)
    assert torch.cuda.memory_allocated() == before


def _outside_of_modes(function):
    def run(*args):
        with torch.utils._python_dispatch._disable_current_modes():
            return function(*args)

    return run


def test_a_weight_that_is_replaced_stays_as_long_as_the_graph():
    weights = [torch.ones(64, 64, device="cuda")]
    call = warm(lambda t: (t * weights[0],))
    captured(call)
    address = weights.pop().data_ptr()
    others = [torch.ones(64, 64, device="cuda") for _ in range(8)]
    assert address not in {t.data_ptr() for t in others}


# --- what cannot be captured -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [lambda t: t.sum().item(), lambda t: torch.cuda.synchronize(), lambda t: t.cpu()])
def test_a_wait_is_named_and_the_next_calls_work(wait):
    def waits(t):
        wait(t)
        return product(t)

    call = warm(waits)
    with runtime.capturing(OTHER), pytest.raises(XlaError, match="cannot be captured") as caught:
        call([X], stream=OTHER)
    assert "command_buffer=True" in str(caught.value)
    assert torch.cuda.current_stream().cuda_stream == 0
    captured(warm(product))
    np.testing.assert_array_equal(executable(lambda t: (t.clone(),), [X], [X])([X])[0], X)


@pytest.mark.parametrize("what", ["argument", "result"])
def test_what_is_kept_is_refused_before_any_capture(what):
    kept = []

    def keeps(t):
        y = torch.sin(t)
        kept.append(t if what == "argument" else y)
        return (y,)

    with pytest.raises(XlaError, match="keeps a tensor of the call"):
        site(keeps).initialize([X])
    assert torch.cuda.current_stream().cuda_stream == 0


def test_an_exception_in_a_capture_is_the_users():
    calls = []

    def raises(t):
        calls.append(t.shape)
        if len(calls) > 1:
            raise KeyError("mine")
        return product(t)

    call = warm(raises)
    with runtime.capturing(OTHER), pytest.raises(XlaError, match="KeyError: 'mine'"):
        call([X], stream=OTHER)
    assert torch.cuda.current_stream().cuda_stream == 0


def test_an_xla_without_state_is_named():
    call = warm(product)
    call.state = 0
    with pytest.raises(XlaError, match="keeps no state"):
        call([X])
