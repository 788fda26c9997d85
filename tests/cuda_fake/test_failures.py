"""A GPU without memory, and one that fails: what XLA and the user get, and what stays as it was."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import torch
from t2j_autodiff import torch2jax
from t2j_autodiff._base.config import residual_limit
from t2j_autodiff._residuals.store import kept_graphs
from t2j_core import last_error

from . import runtime
from .executables import STREAM, XlaError, copy, device_memory, executable, ones
from .programs import Program, new_run

INTERNAL, RESOURCE_EXHAUSTED = 13, 8
X = ones(2, 3)
UNIT = 64 << 20  # bytes of a large operand


# --- memory ----------------------------------------------------------------------------------------------------------


def test_a_function_that_needs_too_much_raises_the_error_of_torch():
    call = executable(lambda t: (torch.empty(1 << 40, device=t.device)[:6].view(2, 3),), [X], [X])
    with pytest.raises(XlaError, match="OutOfMemoryError") as caught:
        call([X])
    assert caught.value.code == RESOURCE_EXHAUSTED
    assert type(last_error()) is torch.OutOfMemoryError


def test_a_copy_of_an_argument_for_a_check_does_without_memory():
    large = ones(UNIT // 4)
    with runtime.little_memory(UNIT - 1):
        executable(lambda t: (t[:6].view(2, 3),), [large], [X])([large])


def needs_memory(t):
    return (torch.exp(t)[:6].view(2, 3),)


def test_copies_of_arguments_for_a_check_leave_the_function_its_memory():
    """A function that fits beside its arguments, but not beside copies of them, failed in each of its first calls."""
    large = ones(UNIT // 4)
    call = executable(needs_memory, [large], [X])
    with runtime.little_memory(UNIT + UNIT // 2):
        for _ in range(4):
            call([large])
    runtime.compares_as(False)  # the digests of the eighth call, which the ninth reads
    for _ in range(4):
        call([large])
    with pytest.raises(XlaError, match="HAS BEEN CHANGED"):
        call([large])


def test_a_check_without_memory_for_digests_is_left_out():
    large = ones(UNIT // 4)
    call = executable(lambda t: (t[:6].view(2, 3),), [large], [X])
    with runtime.little_memory(UNIT // 8):
        for _ in range(5):
            call([large])


@pytest.mark.parametrize("options", [{"has_side_effect": True}, {"mutable_argnums": 1}], ids=lambda o: next(iter(o)))
def test_a_function_with_effects_is_not_run_twice(options):
    runs = []

    def counts(t, u):
        runs.append(1)
        return needs_memory(t)[0], u

    large, small = ones(UNIT // 4), ones(4)
    out = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 3), (4,))]
    f = torch2jax(counts, output_shapes=tuple(out), **options)
    (call,) = Program(f, jnp.asarray(large), jnp.asarray(small)).executables
    with runtime.little_memory(UNIT + UNIT // 2), pytest.raises(XlaError, match="OutOfMemoryError"):
        call([large, small])
    assert len(runs) == 1


def saves(t):
    for _ in range(4):  # a graph keeps the result of each `exp`; without a graph two exist at a time
        t = torch.exp(t)
    return t.sum()


def forward_and_backward():
    """A function and its two calls, which have run twice: later calls do not copy their operands."""
    f, x = torch2jax(saves), jnp.ones(UNIT // 4)
    program = Program(jax.grad(f), x)
    for _ in range(2):
        program(x)
    assert len(kept_graphs) == 0
    return f, program.executables, device_memory(jax.device_get(x).copy())


def test_kept_graphs_may_hold_half_of_the_memory_of_a_device():
    """Fault B: it was half of the host's memory."""
    assert [residual_limit(torch.device("cuda", k)) for k in range(2)] == [runtime.MEMORY // 2] * 2


def test_a_recording_without_memory_frees_the_graphs_that_wait_and_tries_again():
    """Fault B: recording was given up for good."""
    f, (forward, _), x = forward_and_backward()
    with runtime.little_memory(11 * UNIT):
        for _ in range(2):
            forward([x], run_id=new_run())
        assert len(kept_graphs) == 2
        forward([x], run_id=new_run())
    assert len(kept_graphs) == 1
    assert "reverse mode: kept autograd graph\n" in f.explain()


def test_a_recording_that_finds_no_memory_runs_without_and_later_calls_record():
    f, (forward, backward), x = forward_and_backward()
    with runtime.little_memory(3 * UNIT):
        forward([x], run_id=new_run())
    assert len(kept_graphs) == 0
    assert "except in calls that ran out of memory (1)" in f.explain()
    run = new_run()
    _, residual = forward([x], run_id=run)
    assert len(kept_graphs) == 1
    backward([x, residual, ones()], run_id=run)
    assert len(kept_graphs) == 0


def test_a_backward_without_memory_runs_the_forward_again():
    f, (forward, backward), x = forward_and_backward()
    run = new_run()
    _, residual = forward([x], run_id=run)
    torch.cuda.empty_cache()
    with runtime.failing("cudaMalloc", times=2, error=runtime.OUT_OF_MEMORY):  # torch frees its cache and tries again
        backward([x, residual, ones()], run_id=run)
    assert "except in calls that ran out of memory (1)" in f.explain()
    assert "backward of a kept graph failed" not in f.explain()


# --- what fails ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("name", ["cudaEventRecord", "cudaStreamWaitEvent"])
@pytest.mark.parametrize("when", ["enter", "leave"])
def test_torch_gets_its_stream_and_device_back_where_an_event_fails(when, name, device):
    """Fault K: the stream of the call stayed current. The fixture of all tests checks the streams of torch."""
    call = executable(copy, [X], [X])
    for _ in range(2):
        call([X], device=device)
    with runtime.failing(name, after=when == "leave"), pytest.raises(XlaError) as caught:
        call([X], device=device)
    assert caught.value.code == INTERNAL
    assert torch.cuda.current_device() == 0
    (result,) = call([X], device=device)
    assert result.tolist() == X.tolist()


def test_the_error_of_the_function_comes_before_that_of_an_event():
    def raises(t):
        raise KeyError("mine")

    with runtime.failing("cudaEventRecord", after=1), pytest.raises(XlaError, match="mine"):
        executable(raises, [X], [X])([X])


@pytest.mark.parametrize("name", ["cudaLaunchKernel", "cudaMemcpyAsync"])
def test_work_that_cannot_be_enqueued_fails_the_call(name):
    call = executable(lambda t: (torch.sin(t),), [X], [X])
    for _ in range(2):
        call([X])
    with runtime.failing(name), pytest.raises(XlaError) as caught:
        call([X])
    assert caught.value.code == INTERNAL
    call([X])


def test_a_failed_comparison_of_operands_fails_the_call_and_no_other():
    call = executable(copy, [X], [X])
    with runtime.failing("cudaStreamSynchronize"), pytest.raises(XlaError):
        call([X])
    for _ in range(3):
        call([X])


def test_streams_are_in_order_after_a_failed_call():
    call = executable(copy, [X], [X])
    for _ in range(2):
        call([X])
    with runtime.failing("cudaStreamWaitEvent"), pytest.raises(XlaError):
        call([X])
    runtime.take()
    call([X])
    assert runtime.take().joins() == [(STREAM, 0), (0, STREAM)]
