"""What t2j asks of the CUDA runtime in a call, counted: that much host time no machine can take away."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import torch
from t2j_autodiff import torch2jax

from . import runtime
from .executables import STREAM, device_memory, executable, ones
from .programs import Program

pytestmark = pytest.mark.filterwarnings("error::t2j_core.T2jWarning")

X = ones(2, 3)
WAIT = ["cudaEventRecord", "cudaStreamWaitEvent"]


def log_of_third_call(call, operands=(X,), device=0):
    for _ in range(3):
        runtime.take()
        call(operands, device=device)
    return runtime.take()


def test_the_stream_costs_two_records_and_two_waits():
    log = log_of_third_call(executable(lambda t: (t,), [X], [X]))
    assert log.names() == [*WAIT, "cudaMemcpyAsync", *WAIT]


def test_a_second_device_costs_no_more():
    log = log_of_third_call(executable(lambda t: (t,), [X], [X]), device=1)
    assert [name for name in log.names() if name != "cudaSetDevice"] == [*WAIT, "cudaMemcpyAsync", *WAIT]


def test_a_call_on_the_stream_of_torch_costs_nothing():
    call = executable(lambda t: (t,), [X], [X])
    for _ in range(3):
        runtime.take()
        call([X], stream=0)
    assert runtime.take().names() == ["cudaMemcpyAsync"]


@pytest.mark.parametrize("device", [0, 1])
def test_calls_make_no_events_and_no_streams(device):
    calls = [executable(lambda t: (t,), [X], [X]) for _ in range(2)]
    for call in calls:
        log_of_third_call(call, device=device)
    for _ in range(20):
        for k, call in enumerate(calls):
            call([X], device=device, stream=STREAM + 16 * k)
    made = runtime.take().of("cudaEventCreateWithFlags", "cudaStreamCreateWithPriority")
    checked = 2 * 2  # the calls 4 and 16 of each compare their operands, with an event of its own
    assert len(made) <= 2 * checked


def test_memory_is_allocated_once():
    call = executable(lambda t: (torch.sin(t) + torch.cos(t),), [X], [X])
    log_of_third_call(call)
    for _ in range(20):
        call([X])
    assert runtime.take().of("cudaMalloc", "cudaFree", "cudaHostAlloc") == ()


@pytest.mark.parametrize("count", [2, 8, 50])
def test_many_small_results_are_copied_by_one_launch(count):
    small = [device_memory(X) for _ in range(count)]
    log = log_of_third_call(executable(lambda t: (t,) * count, [X], small))
    assert log.launches().names() == ["cudaLaunchKernel"]


def test_small_results_are_copied_by_one_launch_for_each_dtype():
    dtypes = ["float32", "int32", "float16"]
    operands = [ones(4, dtype=dtype) for dtype in dtypes]
    log = log_of_third_call(executable(lambda *tensors: tensors * 5, operands, operands * 5), operands)
    assert log.launches().names() == ["cudaLaunchKernel"] * len(dtypes)


def test_large_results_are_copied_one_by_one():
    large = ones(1 << 19)
    log = log_of_third_call(executable(lambda t: (t, t, t), [large], [large] * 3), [large])
    assert log.launches().names() == ["cudaMemcpyAsync"] * 3


def test_a_gradient_costs_two_calls():
    f = torch2jax(lambda t: torch.exp(t).sum())
    x = jnp.ones((64, 256))
    program = Program(jax.value_and_grad(f), x)
    for _ in range(3):
        runtime.take()
        program(x)
    log = runtime.take()
    assert log.of("cudaEventRecord", "cudaStreamWaitEvent").names() == WAIT * 4
    # The function, its sum, the number of its graph and the copy of both results; exp(x) * ct and its copy.
    assert len(log.launches()) <= 9
