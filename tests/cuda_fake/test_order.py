"""Which stream waits for which around a call, and on which stream and device the work of a call is enqueued."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from t2j_autodiff import torch2jax

from . import runtime
from .executables import OTHER, STREAM, XlaError, copy, executable, ones
from .programs import Program, new_run

pytestmark = pytest.mark.filterwarnings("error::t2j_core.T2jWarning")

X = ones(2, 3)
MANY = ones(64, 256)  # t2j keeps no graph of a function of small tensors
WAIT = ["cudaEventRecord", "cudaStreamWaitEvent"]


def called(function, stream=STREAM, device=0, operands=(X,)):
    """The results and the log of a call that is not checked."""
    call = executable(function, operands, (X,))
    for _ in range(2):
        call(operands, stream=stream, device=device)
    runtime.take()
    (result,) = call(operands, stream=stream, device=device)
    return result, runtime.take()


@pytest.mark.parametrize(("stream", "device"), [(STREAM, 0), (OTHER, 1)])
def test_a_call_is_ordered_after_torch_and_torch_after_the_call(stream, device):
    result, log = called(copy, stream, device)
    np.testing.assert_array_equal(result, X)
    work = log.of(*WAIT, *runtime.LAUNCHES)
    assert work.names() == [*WAIT, "cudaMemcpyAsync", "cudaMemcpyAsync", *WAIT]
    assert log.joins() == [(stream, 0), (0, stream)]
    assert [call.stream for call in log.launches()] == [stream, stream]
    assert {call.device for call in work} == {device}


def test_a_stream_of_torch_waits_for_nothing():
    _, log = called(copy, stream=0)
    assert log.joins() == []
    own = torch.cuda.Stream()
    with torch.cuda.stream(own):
        _, log = called(copy, stream=own.cuda_stream)
    assert log.joins() == []
    assert {call.stream for call in log.launches()} == {own.cuda_stream}


@pytest.mark.parametrize("device", [0, 1])
def test_streams_and_devices_of_the_user_are_joined_and_restored(device):
    side, current = torch.cuda.Stream(device=device), 1 - device
    with torch.cuda.stream(side):
        torch.cuda.set_device(current)
        _, log = called(copy, device=device)
        assert torch.cuda.current_stream(device) == side
        assert torch.cuda.current_device() == current
        torch.cuda.set_device(device)
    torch.cuda.set_device(0)
    assert log.joins() == [(STREAM, side.cuda_stream), (side.cuda_stream, STREAM)]


def test_a_function_that_changes_stream_and_device_leaves_neither_behind():
    def wanders(t):
        y = t.clone()
        torch.cuda.set_device(1)
        torch.cuda.set_stream(torch.cuda.Stream(0))
        torch.cuda.set_device(1)
        return (y,)

    _, log = called(wanders)  # the fixture of all tests sees what is left behind
    assert log.joins()[-1] == (0, STREAM)


def test_a_stream_inside_a_function():
    side = torch.cuda.Stream()

    def uses_a_stream(t):
        main = torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            y = t.clone()
        main.wait_stream(side)
        return (y,)

    _, log = called(uses_a_stream)
    s = side.cuda_stream
    assert log.joins() == [(STREAM, 0), (s, STREAM), (STREAM, s), (0, STREAM)]


def test_a_backward_inside_a_function_runs_on_the_stream_of_the_call():
    def gradient(t):
        with torch.enable_grad():
            x = t.detach().requires_grad_()
            return torch.autograd.grad(torch.sin(x).sum(), x)

    _, log = called(gradient)
    assert len({call.thread for call in log}) == 2, "autograd has a thread for each GPU"
    assert {call.stream for call in log.launches()} == {STREAM}
    assert log.joins() == [(STREAM, 0), (0, STREAM)]


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("residuals", ["auto", "graph", "recompute"])
def test_gradients_run_on_the_stream_and_device_of_their_calls(residuals, device):
    program = gradient_of(lambda t: torch.exp(t).sum(), residuals)
    for _ in range(3):
        runtime.take()
        program(MANY, device=device)
        log = runtime.take()
        assert log.joins() == 2 * [(STREAM, 0), (0, STREAM)]
        assert {(call.stream, call.device) for call in log.launches()} == {(STREAM, device)}


def test_a_backward_on_another_stream_than_its_forward_waits_for_it_both_ways():
    """A kept graph runs its nodes on the stream of the forward (`torch.autograd`, "Stream semantics of backward")."""
    forward, backward = gradient_of(lambda t: torch.exp(t).sum(), "auto").executables
    run = new_run()
    results = forward([MANY], run_id=run)
    runtime.take()
    backward([MANY, results[1], ones()], stream=OTHER, run_id=run)
    joins = runtime.take().joins()
    assert (STREAM, OTHER) in joins
    assert joins[joins.index((STREAM, OTHER)) + 1 :].count((OTHER, STREAM)) >= 1
    assert (joins[0], joins[-1]) == ((OTHER, 0), (0, OTHER))


def gradient_of(function, residuals):
    program = Program(jax.value_and_grad(torch2jax(function, residuals=residuals)), jax.numpy.asarray(MANY))
    assert program.is_paired == (residuals == "auto")
    return program


def test_a_call_that_raises_is_ordered_like_any_other():
    def raises(t):
        t.clone()
        raise KeyError("mine")

    call = executable(raises, [X], [X])
    with pytest.raises(XlaError, match="mine"):
        call([X], device=1)
    assert runtime.take().joins() == [(STREAM, 0), (0, STREAM)]


def test_a_call_inside_a_call_is_ordered_after_it():
    """As where a finalizer or a signal handler calls a function in the middle of another call."""
    inner = executable(copy, [X], [X])

    def nests(t):
        inner([X], stream=OTHER)
        return (t.clone(),)

    executable(nests, [X], [X])([X])
    joins = runtime.take().joins()
    assert joins == [(STREAM, 0), (OTHER, STREAM), (STREAM, OTHER), (0, STREAM)]
