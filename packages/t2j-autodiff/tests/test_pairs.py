"""On a GPU a backward finds the graph of its forward without reading the device: how programs pair the two.

Programs are lowered for CUDA here, which needs no GPU. What the native part tells about the running call is told by
the tests instead.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
import torch
from t2j_autodiff import _residuals, clear_residuals, torch2jax

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
    [jax.grad, lambda h: jax.jit(jax.grad(h)), lambda h: lambda x: jax.jvp(h, (x,), (x,))],
    ids=["grad", "jit of grad", "jvp"],
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


def test_programs_of_the_cpu_have_no_pairs():
    text = jax.jit(jax.grad(layers(torch2jax(f)))).lower(X).as_text()
    assert "pair" not in text


class Device:
    """What the native part tells of paired calls, and how often the device is read."""

    def __init__(self, monkeypatch):
        self.pair = None
        self.reads = 0
        monkeypatch.setattr(_residuals, "current_pair", lambda: self.pair)
        read = _residuals.numbers_in

        def numbers_in(tensor):
            self.reads += 1
            return read(tensor)

        monkeypatch.setattr(_residuals, "numbers_in", numbers_in)


@pytest.fixture
def device(monkeypatch):
    clear_residuals()
    yield Device(monkeypatch)
    clear_residuals()


def forward(h, x):
    """The pullback at x, when the forward has run: programs of the CPU may run on a thread of XLA."""
    y, pull = jax.vjp(h, x)
    jax.block_until_ready(y)
    return pull


class Counted:
    """A torch function that counts its runs on data."""

    def __init__(self):
        self.runs = 0

    def __call__(self, x):
        self.runs += not x.is_meta
        return torch.tanh(x).exp().sum()


def run(device, order, h=None):
    """Runs forwards and backwards of pair 1 in an order such as "f0 f1 b1 b0", and judges each gradient."""
    h = h or torch2jax(Counted())
    xs = {name: X + int(name) for name in "0123"}
    pulls = {}
    for step, name in order.split():
        device.pair = (7, 0, 1)
        if step == "f":
            pulls[name] = forward(h, xs[name])
        else:
            expected = jax.grad(lambda x: jnp.exp(jnp.tanh(x)).sum())(xs[name])
            assert jnp.allclose(pulls[name](jnp.float32(1))[0], expected, rtol=1e-3)


def test_a_backward_of_a_pair_does_not_read_the_device(device):
    counted = Counted()
    run(device, "f0 b0 f1 b1 f2 b2", torch2jax(counted))
    assert device.reads == 0
    assert counted.runs == 3


def test_a_call_that_is_no_pair_reads_the_device(device):
    device.pair = None
    h = torch2jax(Counted())
    jax.block_until_ready(jax.grad(h)(X))
    assert device.reads == 1


@pytest.mark.parametrize("order", ["f0 f1 b1 b0", "f0 f1 b0 b1", "f0 f1 b1 f2 b0 b2", "f0 f1 f2 b1 b2 b0"])
def test_where_forwards_overtake_each_other_the_device_is_read(device, order):
    run(device, order)
    assert device.reads == order.count("b")


@pytest.mark.parametrize("order", ["f0 b0 b0", "f0 b0 b0 b0 f1 b1"])
def test_a_backward_that_comes_again_runs_the_forward_again(device, order):
    run(device, order)


def test_a_forward_whose_backward_never_comes_is_not_taken_for_the_next(device):
    run(device, "f0 f1 b1 f2 b2")


def test_graphs_that_are_gone_are_not_looked_for(device):
    counted = Counted()
    h = torch2jax(counted)
    device.pair = (7, 0, 1)
    pull = forward(h, X)
    clear_residuals()
    jax.block_until_ready(pull(jnp.float32(1)))
    assert (counted.runs, device.reads) == (2, 0)


def test_executions_and_devices_are_apart(device):
    counted = Counted()
    h = torch2jax(counted)
    pulls = []
    for pair in [(7, 0, 1), (8, 0, 1), (7, 1, 1), (7, 0, 2)]:
        device.pair = pair
        pulls.append((pair, forward(h, X + len(pulls))))
    for k, (pair, pull) in enumerate(pulls):
        device.pair = pair
        expected = jax.grad(lambda x: jnp.exp(jnp.tanh(x)).sum())(X + k)
        assert jnp.allclose(pull(jnp.float32(1))[0], expected, rtol=1e-3)
    assert (counted.runs, device.reads) == (4, 0)
