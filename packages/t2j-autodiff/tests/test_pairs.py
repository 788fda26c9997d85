"""On a GPU a backward finds the graph of its forward without reading the device: how programs pair the two.

Programs are lowered for CUDA here, which needs no GPU. The tests stand in for the native part, which says
which call is running.
"""

from __future__ import annotations

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from _counted import Counted, in_jnp
from t2j_autodiff import clear_residuals, torch2jax
from t2j_autodiff._residuals import example_numbers, tickets

N = 5000  # more elements than a function that is run again may have
X = jnp.linspace(-1, 1, N)


def f(x):
    return torch.tanh(x).exp()


def of_cuda(function, *args):
    """The calls of torch in a program for CUDA: the number of the pair of each, if it has one."""
    text = jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"t2j_torch_call\(.*?mhlo.backend_config = \{(.*?)\}", text)
    numbers = [re.search(r"pair = (\d+)", call) for call in calls]
    return [number and int(number[1]) for number in numbers]


def layers(h):
    return lambda x: h(h(h(x))).sum()


@pytest.mark.parametrize(
    "transform",
    [jax.grad, lambda h: jax.jit(jax.grad(h)), lambda h: lambda x: jax.linearize(h, x)[1](x)],
    ids=["grad", "jit of grad", "linearize"],
)
def test_each_forward_is_paired_with_its_own_derivative(transform):
    pairs = of_cuda(transform(layers(torch2jax(f))), X)
    assert len(pairs) == 6
    assert len(set(pairs)) == 3
    assert all(pairs.count(pair) == 2 for pair in pairs)


def test_a_checkpoint_is_paired_with_the_forward_that_it_repeats():
    pairs = of_cuda(jax.grad(jax.checkpoint(layers(torch2jax(f)))), X)
    paired = [pair for pair in pairs if pair is not None]
    assert len(paired) == 6
    assert len(set(paired)) == 3


def test_programs_are_the_same_wherever_they_are_lowered():
    h = layers(torch2jax(f))
    assert of_cuda(jax.grad(h), X) == of_cuda(jax.grad(h), X)


def test_what_a_loop_or_an_inner_function_hands_over_is_no_pair():
    h = torch2jax(f)
    loop = lambda x: jax.lax.scan(lambda c, _: (h(c), None), x, length=3)[0].sum()
    assert set(of_cuda(jax.grad(loop), X)) == {None}
    assert set(of_cuda(jax.grad(jax.jit(layers(h))), X)) == {None}


@pytest.mark.parametrize("platforms", [("cpu",), ("cpu", "cuda")], ids="+".join)
def test_programs_of_the_cpu_have_no_pairs(platforms):
    text = jax.jit(jax.grad(layers(torch2jax(f)))).trace(X).lower(lowering_platforms=platforms).as_text()
    assert text.count("t2j_torch_call(") == 6
    assert "pair" not in text


class Device:
    """What the native part tells of paired calls, and how often the device is read."""

    def __init__(self, monkeypatch):
        self.pair = None
        self.reads = 0
        monkeypatch.setattr(tickets, "current_pair", lambda: self.pair)
        # The calls of a test run on any thread of XLA's, those of a GPU on one.
        monkeypatch.setattr(tickets, "_of_thread", types.SimpleNamespace(executions={}))
        tickets._of_thread.numbers = types.MethodType(tickets._OfThread.numbers, tickets._of_thread)
        read = example_numbers.read

        def counted(residual):
            self.reads += 1
            return read(residual)

        monkeypatch.setattr(example_numbers, "read", counted)


@pytest.fixture
def device(monkeypatch):
    clear_residuals()
    yield Device(monkeypatch)
    clear_residuals()


class Execution:
    """Runs forwards and backwards of one function in an order such as "f0 f1 b1 b0", and judges each gradient."""

    def __init__(self, device, function=None):
        self.device, self.h, self.pulls = device, torch2jax(function or Counted()), {}

    def __call__(self, order, pair=lambda name: (7, 0, 1)):
        for step, name in order.split():
            self.device.pair = pair(name)
            x = X + int(name)
            if step == "f":
                y, self.pulls[name] = jax.vjp(self.h, x)
                jax.block_until_ready(y)  # programs of the CPU may run on a thread of XLA
            else:
                expected = jax.grad(in_jnp)(x)
                np.testing.assert_allclose(self.pulls[name](jnp.float32(1))[0], expected, rtol=1e-3)


@pytest.mark.parametrize(
    "pair",
    [lambda k: (7, 0, int(k)), lambda k: (int(k), 0, 1), lambda k: (7, int(k), 1)],
    ids=["calls", "executions", "devices"],
)
@pytest.mark.parametrize("order", ["f0 b0 f1 b1 f2 b2", "f0 f1 f2 b2 b1 b0", "f0 f1 f2 b0 b1 b2"])
def test_a_backward_of_a_pair_does_not_read_the_device(device, order, pair):
    counted = Counted()
    Execution(device, counted)(order, pair)
    assert device.reads == 0
    assert counted.runs == 3


def test_a_call_that_is_no_pair_reads_the_device(device):
    Execution(device)("f0 b0 f1 b1", lambda name: None)
    assert device.reads == 2


# XLA inlines a function that is called twice, and merges equal calls: orders like these were seen in its programs.
@pytest.mark.parametrize(
    "order",
    [
        *("f0 f1 b1 b0", "f0 f1 b0 b1", "f0 f1 b1 f2 b0 b2", "f0 f1 f2 b1 b2 b0"),
        *("f0 b0 f1 b0 b1", "f0 b0 f1 b0 b1 b1", "f0 b0 b0 f1 b0 b1 f2 b1 b0 b2", "f0 f1 b1 f2 b1 b2"),
    ],
)
def test_where_a_pair_has_several_forwards_the_device_is_read(device, order):
    Execution(device)(order)
    assert device.reads > 0


def test_a_backward_that_comes_again_runs_the_forward_again(device):
    counted = Counted()
    Execution(device, counted)("f0 b0 b0 b0")
    assert (counted.runs, device.reads) == (3, 0)


def test_graphs_that_are_gone_are_not_looked_for(device):
    counted = Counted()
    execution = Execution(device, counted)
    execution("f0")
    clear_residuals()
    execution("b0")
    assert (counted.runs, device.reads) == (2, 0)


def test_a_thread_remembers_the_executions_that_it_is_in_the_middle_of(device):
    execution = Execution(device)
    execution("f0 b0 f1")
    for other in range(15):
        Execution(device)("f2 b2", lambda name, other=other: (100 + other, 0, 1))
    execution("b0 b1")


def test_old_executions_are_forgotten(device):
    for number in range(50):
        Execution(device)("f0 b0 f1", lambda name, number=number: (number, 0, 1))
    assert len(tickets._of_thread.executions) <= 16


def test_outside_of_a_call_there_is_no_pair():
    assert tickets.take() == tickets.UNKNOWN
