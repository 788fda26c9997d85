"""Derivatives run as many calls as they need, and hand residuals over as they are."""

from __future__ import annotations

import jax
import pytest
import torch
from h100 import aval, program
from t2j_autodiff import torch2jax

N = 128  # N x N is more than what is computed again in a backward without asking


def layer(x, w):
    return torch.tanh(x @ w)


def total(function):
    return lambda x, w: (function(x, w) ** 2).sum()


SQUARE = (aval(N, N), aval(N, N))


@pytest.mark.parametrize("residuals", ["auto", "recompute", "graph"])
@pytest.mark.parametrize("argnums", [0, 1, (0, 1)], ids=str)
def test_value_and_gradient_are_two_calls(residuals, argnums):
    f = torch2jax(layer, residuals=residuals)
    found = program(jax.value_and_grad(total(f), argnums), *SQUARE)
    assert len(found.calls) == 2
    assert not found.moves
    forward, backward = found.calls
    assert found.operand(backward, 0).opcode == found.operand(backward, 1).opcode == "parameter"
    assert forward not in (found.operand(backward, 0), found.operand(backward, 1))


@pytest.mark.parametrize(
    ("residuals", "handed_over"),
    [("auto", ["s32[]"]), ("recompute", []), ("graph", ["f32[128,128]"])],
    ids=["number of a graph", "nothing", "arrays"],
)
def test_what_a_forward_leaves_goes_to_its_backward(residuals, handed_over):
    f = torch2jax(layer, residuals=residuals)
    found = program(jax.grad(total(f), 1), *SQUARE)
    forward, backward = found.calls
    from_forward = [i for i in range(len(backward.makers)) if found.operand(backward, i) == forward]
    parts = {i.name: i.shape for i in found.instructions}
    assert [parts[backward.makers[i]].split("{")[0] for i in from_forward] == handed_over


def test_a_gradient_alone_runs_the_backward_alone_where_it_computes_again():
    f = torch2jax(layer, residuals="recompute")
    found = program(jax.grad(lambda x, w: f(x, w).sum(), 1), *SQUARE)
    assert len(found.calls) == 1


def test_layers_are_a_chain():
    f = torch2jax(layer)
    found = program(jax.value_and_grad(lambda x, w: total(f)(f(f(x, w), w), w), 1), *SQUARE)
    assert len(found.calls) == 6
    assert not found.moves


def test_a_value_and_a_tangent_are_one_call():
    f = torch2jax(layer)
    found = program(lambda x, w, t: jax.jvp(lambda x: f(x, w), (x,), (t,)), *SQUARE, aval(N, N))
    assert len(found.calls) == 1
    assert found.calls[0].shape.count("f32[128,128]{1,0}") == 2
    assert not found.moves


def test_a_linearised_function_is_one_call():
    f = torch2jax(layer)
    found = program(lambda x, w: jax.linearize(lambda x: f(x, w), x)[1](x), *SQUARE)
    assert len(found.calls) == 1
    assert not found.moves


def scalar(x):
    return (x.sin() * x).sum()


def vector(x):
    return x.sin() * x


@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize(
    ("of", "function", "transposes"),
    [(jax.jacrev, vector, 0), (jax.jacfwd, vector, 1), (jax.hessian, scalar, 1)],  # JAX's own, of the columns
    ids=["jacrev", "jacfwd", "hessian"],
)
def test_a_matrix_of_derivatives_is_one_call(n, of, function, transposes):
    found = program(of(torch2jax(function)), aval(n))
    assert len(found.calls) == 1
    assert found.moves.total() == transposes


def test_a_checkpoint_runs_the_forward_twice():
    f = torch2jax(layer)
    two = lambda x, w: total(f)(f(x, w), w)
    found = program(jax.value_and_grad(jax.checkpoint(two), 1), *SQUARE)
    assert len(found.calls) == 6
    assert not found.moves


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_call_and_nothing_is_broadcast():
    f = torch2jax(layer)
    found = program(jax.vmap(f, (0, None)), aval(4, 8, 8), aval(8, 8))
    assert found.opcodes == {"parameter": 2, "custom-call": 1}


def test_another_batch_axis_is_moved_as_in_jax():
    f = torch2jax(layer)
    args = aval(8, 8, 4), aval(8, 8)
    found = program(jax.vmap(f, (2, None)), *args)
    assert len(found.calls) == 1
    assert found.moves == {"transpose": 1}


def test_the_gradient_of_a_batch_is_a_batch_of_gradients():
    f = torch2jax(layer)
    found = program(jax.grad(lambda x, w: (jax.vmap(f, (0, None))(x, w) ** 2).sum(), 1), aval(4, N, N), aval(N, N))
    assert len(found.calls) == 2
    assert not found.moves
    found = program(jax.vmap(jax.grad(total(f), 1), (0, None)), aval(4, N, N), aval(N, N))
    assert len(found.calls) == 2
    assert not found.moves
