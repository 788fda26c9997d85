"""`command_buffer=True` and derivatives: no autograd graph waits on the host for a backward that runs no Python.

Programs are lowered for CUDA here, which needs no GPU.
"""

from __future__ import annotations

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import agree
from t2j_autodiff import PerformanceWarning, torch2jax
from t2j_core import _compat

N = 5000  # more elements than a function that is run again may have
X = np.linspace(-1, 1, N, dtype=np.float32)

pytestmark = pytest.mark.skipif(not _compat.has_command_buffers, reason="jax before 0.10")


def f(x):
    return torch.tanh(x).exp()


def in_jnp(x):
    return jnp.exp(jnp.tanh(x))


def branches(x):
    """What a trace refuses."""
    return torch.sin(x) if bool((x > -2).all()) else x


def calls(function, *args):
    """The handlers of the calls in a program for CUDA, and their attributes."""
    text = jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    return re.findall(r"@(t2j_\w+)\(.*?mhlo.backend_config = \{(.*?)\}", text)


TRANSFORMS = {
    "grad": lambda h: jax.grad(lambda x: h(x).sum()),
    "grad of two layers": lambda h: jax.grad(lambda x: h(h(x)).sum()),
    "checkpoint": lambda h: jax.grad(jax.checkpoint(lambda x: h(x).sum())),
    "scan": lambda h: jax.grad(lambda x: jax.lax.scan(lambda c, _: (h(c), None), x, length=3)[0].sum()),
    "vmap": lambda h: lambda x: jax.vmap(h)(jnp.stack([x, x])),
    "vmap of grad": lambda h: lambda x: jax.vmap(jax.grad(lambda x: h(x).sum()))(jnp.stack([x, x])),
    "jvp": lambda h: lambda x: jax.jvp(h, (x,), (x,)),
    "hvp": lambda h: lambda x: jax.jvp(jax.grad(lambda x: h(x).sum()), (x,), (x,)),
}


@pytest.mark.parametrize("residuals", ["auto", "recompute", "graph"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_all_calls_may_be_captured_and_none_leaves_a_graph(transform, residuals):
    h = torch2jax(f, command_buffer=True, residuals=residuals)
    found = calls(TRANSFORMS[transform](h), X)
    assert found
    assert {name for name, _ in found} == {"t2j_torch_call_captured"}
    assert not any("pair" in attributes for _, attributes in found)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_values_are_those_of_jnp(transform):
    h = torch2jax(f, command_buffer=True)
    agree(jax.jit(TRANSFORMS[transform](h))(X), TRANSFORMS[transform](in_jnp)(X))


def test_a_gradient_saves_arrays():
    h = torch2jax(f, command_buffer=True)
    jax.grad(lambda x: h(x).sum())(X)
    assert "from a traced graph" in h.explain()
    g = torch2jax(f)
    jax.grad(lambda x: g(x).sum())(X)
    assert "kept autograd graph" in g.explain()


class Untraceable(torch.autograd.Function):
    """Its backward reads a value, which has none in a trace."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, ct):
        (x,) = ctx.saved_tensors
        return ct * x.cos() * (1.0 if bool((x > -2).all()) else 0.0)


@pytest.mark.filterwarnings("ignore:Error detected in")
def test_a_function_that_cannot_be_traced_runs_its_forward_again():
    h = torch2jax(Untraceable.apply, command_buffer=True)
    with pytest.warns(
        PerformanceWarning, match="runs the forward again, because command buffers keep no autograd graph"
    ):
        gradient = jax.grad(lambda x: h(x).sum())(X)
    agree(gradient, jnp.cos(X))
    assert "recompute (a command buffer keeps no autograd graph)" in h.explain()
    found = calls(jax.grad(lambda x: h(x).sum()), X)
    assert {name for name, _ in found} == {"t2j_torch_call_captured"}


def test_what_may_not_be_captured_keeps_its_graphs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        h = torch2jax(branches, command_buffer=True)
        agree(jax.grad(lambda x: h(x).sum())(X), jnp.cos(X))
        assert "kept autograd graph" in h.explain()
        found = calls(jax.grad(lambda x: h(x).sum()), X)
    assert {name for name, _ in found} == {"t2j_torch_call"}
    assert len({attributes.split("pair = ")[1] for _, attributes in found}) == 1


def test_a_compiled_function_may_be_captured():
    if not _compat.can_compile:
        pytest.skip("this torch does not compile")
    h = torch2jax(f, command_buffer=True, compile=True)
    assert {name for name, _ in calls(jax.grad(lambda x: h(x).sum()), X)} == {"t2j_torch_call_captured"}
