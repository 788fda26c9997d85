"""Calls with little GPU memory, and the memory that they use."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import clear_residuals, torch2jax
from t2j_autodiff._base import config
from t2j_autodiff._residuals.store import kept_graphs
from t2j_core import last_error

pytestmark = pytest.mark.gpu

N = 1 << 24
UNIT = 4 * N  # 64 MB: the size of an argument, of its copy in a checked call, and of each saved tensor


@pytest.fixture(autouse=True)
def _on_the_gpu(gpu):
    clear_residuals()
    yield
    clear_residuals()


@pytest.fixture
def little(gpu):
    """Allow torch 11.5 units more than it has."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(gpu.torch).total_memory
    most = torch.cuda.memory_reserved(gpu.torch) + int(11.5 * UNIT)
    torch.cuda.set_per_process_memory_fraction(most / total, gpu.torch)
    yield most
    torch.cuda.set_per_process_memory_fraction(1.0, gpu.torch)
    torch.cuda.empty_cache()


def saves(x):
    for _ in range(3):  # each `tanh` saves its result, and the last result is not the function's output
        x = torch.tanh(x)
    return x.sum()


def saves_in_jnp(x):
    for _ in range(3):
        x = jnp.tanh(x)
    return x.sum()


def take_all_memory():
    """Allocate blocks of a quarter of a unit until torch has no memory left, including pieces of larger blocks."""
    taken = []
    with contextlib.suppress(torch.OutOfMemoryError):
        while True:
            taken.append(torch.empty(UNIT // 4, dtype=torch.uint8, device="cuda"))
    return taken


def test_kept_graphs_may_hold_half_of_the_gpu(gpu):
    assert config.residual_limit(gpu.torch) == pytest.approx(torch.cuda.mem_get_info(gpu.torch)[1] / 2, rel=0.01)
    _, pull = jax.vjp(torch2jax(saves), jnp.ones(N))
    assert len(kept_graphs) == 1
    assert kept_graphs.nbytes(gpu.torch) >= 3 * UNIT
    assert kept_graphs.nbytes(torch.device("cpu")) == 0
    pull(jnp.float32(1))[0].block_until_ready()
    assert kept_graphs.nbytes(gpu.torch) == 0


def test_a_recording_without_memory_frees_the_graphs_that_wait(little):
    f = torch2jax(saves)
    x = jnp.linspace(-1, 1, N)
    expected = jax.grad(saves_in_jnp)(x)
    pulls = [jax.vjp(f, x)[1] for _ in range(6)]  # 3 units each
    assert 0 < len(kept_graphs) < 6
    assert "recording failed" not in f.explain()
    for pull in reversed(pulls):
        np.testing.assert_allclose(pull(jnp.float32(1))[0], expected, rtol=1e-4, atol=1e-5)


def test_a_backward_without_memory_runs_the_forward_again(little):
    f = torch2jax(saves)
    x = jnp.linspace(-1, 1, N)
    expected = jax.grad(saves_in_jnp)(x)
    pulls = [jax.vjp(f, x)[1] for _ in range(2)]
    torch.cuda.synchronize()
    taken = take_all_memory()
    del taken[-3:]  # frees less than the one unit that a backward needs
    for pull in pulls:
        np.testing.assert_allclose(pull(jnp.float32(1))[0], expected, rtol=1e-4, atol=1e-5)
    assert "except in calls that ran out of memory" in f.explain()
    taken.clear()
    np.testing.assert_allclose(jax.grad(f)(x), expected, rtol=1e-4, atol=1e-5)
    assert "backward of a kept graph failed" not in f.explain()


def test_a_function_that_needs_too_much_raises_the_error_of_torch(little):
    f = torch2jax(lambda x: torch.empty(1 << 40, device=x.device).sum() + x.sum(), output_shapes=())
    with pytest.raises(torch.OutOfMemoryError):
        f(jnp.ones(3)).block_until_ready()
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="RESOURCE_EXHAUSTED"):
        jax.block_until_ready(jax.jit(jax.value_and_grad(f))(jnp.ones(3)))
    assert type(last_error()) is torch.OutOfMemoryError
