"""The host waits for a GPU only where `docs/gpus.md` says so."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import torch2jax
from t2j_autodiff._residuals.store import kept_graphs

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


def test_a_key_is_read_once_by_each_call():
    """What is true today: torch's generators take a seed from the host."""
    f = torch2jax(lambda t: t + torch.rand_like(t), rng=True)
    key = jax.random.key_data(jax.random.key(0))
    program = Program(lambda data, x: f(jax.random.wrap_key_data(data), x), key, X)
    assert waits(program, key, X) == CALLS * [["cudaStreamSynchronize"]]


def test_what_waits_in_a_function_is_its_own():
    program = Program(torch2jax(lambda t: t + t.sum().item(), output_shapes=jax.ShapeDtypeStruct(X.shape, X.dtype)), X)
    assert waits(program, X) == CALLS * [["cudaStreamSynchronize"]]
