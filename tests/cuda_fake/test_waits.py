"""The host waits for a GPU only where `docs/gpus.md` says so."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import torch2jax
from t2j_autodiff._residuals.store import kept_graphs
from t2j_core._random import sampler

from . import runtime
from .executables import device_memory, ones
from .programs import Program, new_run

pytestmark = pytest.mark.filterwarnings("error::t2j_core.T2jWarning")

X = jnp.ones((64, 256))
CALLS = 12  # some of them compare the operands with copies
RESIDUALS = ["auto", "graph", "recompute"]


def function(t):
    return torch.exp(t).sum()


def logs(program, *args, calls=CALLS):
    """The logs of the calls after the first two, which wait for the comparison of their operands."""
    found = []
    for _ in range(2 + calls):
        program(*args)
        found.append(runtime.take())
    return found[2:]


def waits(program, *args):
    """What waits in each call."""
    found = logs(program, *args)
    checked = [log for log in found if log.of("cudaEventQuery")]
    assert 0 < len(checked) < CALLS, "no call was checked"
    return [log.waits() for log in found]


PROGRAMS = {
    "forward": lambda f: f,
    "batch": lambda f: jax.vmap(f),
    "gradient": lambda f: jax.value_and_grad(f),
    "batch of gradients": lambda f: jax.vmap(jax.grad(f)),
    "forward mode": lambda f: lambda x: jax.jvp(f, (x,), (x,)),
    "batch of cotangents": lambda f: lambda x: jax.vmap(jax.vjp(f, x)[1])(jnp.ones(3)),
    "forward over reverse": lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (x,))[1],
    "reverse over reverse": lambda f: jax.grad(lambda x: jax.grad(f)(x).sum()),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    "layers": lambda f: jax.grad(lambda x: f(x) * f(x)),
}


@pytest.mark.parametrize("residuals", RESIDUALS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_call_waits_after_the_first_two(name, residuals):
    program = Program(PROGRAMS[name](torch2jax(function, residuals=residuals)), X)
    assert waits(program, X) == CALLS * [[]]


def test_a_backward_that_is_paired_takes_the_graph_of_its_forward_and_reads_nothing():
    program = Program(jax.grad(torch2jax(function)), X)
    assert program.is_paired
    assert waits(program, X) == CALLS * [[]]
    assert len(kept_graphs) == 0, "a backward has taken each graph"


def test_a_backward_that_is_not_paired_reads_the_number_of_its_graph_once():
    program = Program(jax.grad(jax.jit(torch2jax(function))), X)
    assert not program.is_paired
    assert waits(program, X) == CALLS * [["cudaStreamSynchronize"]]
    assert len(kept_graphs) == 0


def test_a_pair_is_that_of_one_run_of_the_program():
    """Two executions that overlap have the same pair; the number of one is not that of the other."""
    forward, backward = Program(jax.grad(torch2jax(function)), X).executables
    x, ct, runs = device_memory(np.asarray(X)), ones(), (new_run(), new_run())
    residuals = [forward([x], run_id=run)[1] for run in runs]
    assert len(kept_graphs) == 2
    for left, run, residual in zip((1, 0), runs, residuals, strict=True):
        backward([x, residual, ct], run_id=run)
        assert len(kept_graphs) == left


def test_only_the_first_two_calls_wait_for_the_comparison_of_their_operands():
    program = Program(torch2jax(function), X)
    found = []
    for _ in range(3):
        program(X)
        found.append(runtime.take().waits())
    assert found == [["cudaStreamSynchronize"], ["cudaStreamSynchronize"], []]


def keyed(f):
    """A program of a function that takes a key, and its arguments."""
    f, key = torch2jax(f, rng=True), jax.random.key_data(jax.random.key(0))
    return Program(lambda data, x: f(jax.random.wrap_key_data(data), x), key, X), key, X


def draws(t):
    return t + torch.rand_like(t)


def test_a_key_is_read_once_by_each_call_where_torch_draws(monkeypatch):
    monkeypatch.setitem(sampler.samplers, "cuda", lambda: None)  # as without Triton
    assert waits(*keyed(draws)) == CALLS * [["cudaStreamSynchronize"]]


@pytest.fixture
def drawn(monkeypatch):
    """The keys from which numbers are drawn on the device, by a stand-in for the kernel."""
    keys = []

    def fill(out, key, position, distribution):
        keys.append((key.device.type, position))
        out.zero_()

    monkeypatch.setitem(sampler.samplers, "cuda", lambda: fill)
    return keys


def test_no_key_is_read_where_the_device_draws(drawn):
    """Autograd runs the backward on another thread, which draws nothing."""

    def function(t):
        with torch.enable_grad():
            x = t.detach().requires_grad_()
            return torch.autograd.grad(torch.nn.functional.dropout(draws(x)).sum(), x)

    assert waits(*keyed(function)) == CALLS * [[]]
    devices, positions = zip(*drawn[-2:], strict=True)
    assert devices == ("cuda", "cuda")
    assert len(set(positions)) == 2


def test_an_operation_that_only_torch_can_draw_reads_the_key(drawn):
    assert waits(*keyed(lambda t: t + torch.poisson(t))) == CALLS * [["cudaStreamSynchronize"]]
    assert not drawn


def test_what_waits_in_a_function_is_its_own():
    program = Program(torch2jax(lambda t: t + t.sum().item(), output_shapes=jax.ShapeDtypeStruct(X.shape, X.dtype)), X)
    assert waits(program, X) == CALLS * [["cudaStreamSynchronize"]]
