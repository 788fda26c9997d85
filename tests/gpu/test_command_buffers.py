"""`command_buffer=True` on a GPU: XLA captures calls in CUDA graphs, and launches the graphs without Python."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import CommandBufferError, torch2jax

pytestmark = pytest.mark.gpu

CAPTURE_ALL = {"xla_gpu_graph_min_graph_size": 1}
EXECUTIONS = 50


@pytest.fixture(autouse=True)
def _on_the_gpu(gpu):
    yield


class Counted:
    """A function that counts how often its Python runs."""

    def __init__(self, function):
        self.function, self.runs, self.__name__ = function, 0, "counted"

    def __call__(self, *tensors):
        self.runs += 1
        return self.function(*tensors)


def between_kernels(call):
    """A program in which XLA has kernels of its own before and after a call."""
    return lambda x: jnp.cos(call(jnp.sin(x) * 1.5)) + 1


def captured(function):
    return jax.jit(function, donate_argnums=0, compiler_options=CAPTURE_ALL)


def test_values_stay_right_and_python_stops_running():
    counted = Counted(lambda x: torch.tanh(x) * 2)
    step = captured(between_kernels(torch2jax(counted, command_buffer=True)))
    expected, runs = np.linspace(-1, 1, 4096, dtype=np.float32), []
    x = jnp.asarray(expected)
    for _ in range(EXECUTIONS):
        x = step(x)
        expected = np.cos(np.tanh(np.sin(expected) * 1.5) * 2) + 1
        np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4)
        runs.append(counted.runs)
    assert runs[-1] == runs[EXECUTIONS // 2]


def test_memory_of_a_graph_is_used_for_nothing_else():
    f = torch2jax(lambda x: torch.softmax(x @ x.mT, -1) @ x, command_buffer=True)
    step = captured(between_kernels(f))
    x = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    expected = np.asarray(step(jnp.asarray(x)))
    for _ in range(EXECUTIONS):
        others = [torch.full((64, 64), float("nan"), device="cuda") for _ in range(20)]
        np.testing.assert_array_equal(step(jnp.asarray(x)), expected)
        del others


def test_products_at_two_sites():
    """Each has a workspace of cuBLAS of its own."""
    f, g = (torch2jax(lambda x: (x @ x) / 64, command_buffer=True) for _ in range(2))
    h = torch2jax(lambda x: (x @ x) / 64)
    x = jax.random.normal(jax.random.key(0), (64, 64))
    expected = jax.jit(lambda x: h(x) + h(jnp.sin(x)))(x)
    step = jax.jit(lambda x: f(x) + g(jnp.sin(x)), compiler_options=CAPTURE_ALL)
    for _ in range(EXECUTIONS):
        np.testing.assert_allclose(step(x), expected, rtol=1e-5, atol=1e-5)


def test_a_thread_that_captures_after_another_one():
    """The handles of cuBLAS belong to a thread, and cannot be made in a capture."""
    step = jax.jit(
        between_kernels(torch2jax(lambda x: (x @ x) / 64, command_buffer=True)), compiler_options=CAPTURE_ALL
    )
    x = jnp.ones((64, 64))
    held = [step(x)]  # so that the next result has other memory
    thread = threading.Thread(target=lambda: held.append(jax.block_until_ready(step(x + 0))))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(*held)


def test_gradients():
    f, g = torch2jax(torch.tanh, command_buffer=True), torch2jax(torch.tanh)
    loss = lambda call: lambda x: (call(call(x)) ** 2).sum()
    x = jnp.linspace(-1, 1, 4096)
    step = jax.jit(jax.grad(loss(f)), compiler_options=CAPTURE_ALL)
    for _ in range(5):
        np.testing.assert_allclose(step(x), jax.jit(jax.grad(loss(g)))(x), rtol=1e-5)


def test_a_weight_of_a_closure_is_read_at_each_launch():
    weight = torch.full((4096,), 2.0, device="cuda")
    step = captured(between_kernels(torch2jax(lambda x: x * weight, command_buffer=True)))
    for factor in (2.0, 3.0, 4.0):
        weight.fill_(factor)
        torch.cuda.synchronize()
        np.testing.assert_allclose(step(jnp.ones(4096)), np.cos(np.sin(1.0) * 1.5 * factor) + 1, rtol=1e-5)


def test_reading_a_value_is_an_error_and_the_next_program_works():
    shape = jax.ShapeDtypeStruct((4096,), jnp.float32)
    f = torch2jax(lambda x: x * x.sum().item(), command_buffer=True, output_shapes=shape)
    with pytest.raises(Exception, match="cannot be captured") as caught:
        captured(between_kernels(f))(jnp.ones(4096)).block_until_ready()
    assert "CommandBufferError" in str(caught.value) or isinstance(caught.value, CommandBufferError)
    np.testing.assert_allclose(jax.jit(torch2jax(torch.sin))(jnp.ones(4)), np.sin(np.ones(4)), rtol=1e-6)
