"""Loops, branches and slices: where the call is, and what is copied for it."""

from __future__ import annotations

from collections import Counter

import jax
import jax.numpy as jnp
import pytest
import torch
from h100 import aval, program
from t2j_autodiff import torch2jax
from t2j_core._compat.versions import _numbers

SLICES_ARE_FUSED = _numbers(jax.__version__) >= (0, 11)  # with the calls that read and write them
N = 128
SQUARE = (aval(N, N), aval(N, N))


def layer(x, w):
    return torch.tanh(x @ w)


def scan(f):
    return lambda x, *w: jax.lax.scan(lambda c, _: (f(c, *w), None), x, length=4)[0]


def while_loop(f):
    return lambda x, *w: jax.lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, f(c[1], *w)), (0, x))[1]


@pytest.mark.parametrize("loop", [scan, while_loop], ids=["scan", "while"])
def test_a_loop_has_the_call_in_its_body(loop):
    found = program(loop(torch2jax(layer)), *SQUARE)
    assert {call.computation for call in found.calls} == found.bodies_of_loops()
    assert len(found.calls) == 1


@pytest.mark.parametrize("loop", [scan, while_loop], ids=["scan", "while"])
def test_a_loop_copies_its_carry_as_where_jax_cannot_write_in_place(loop):
    assert program(loop(torch2jax(torch.sin)), aval(N, N)).moves == program(loop(jnp.flip), aval(N, N)).moves


@pytest.mark.parametrize("loop", [scan, while_loop], ids=["scan", "while"])
def test_a_loop_writes_a_mutable_carry_in_place(loop):
    found = program(loop(torch2jax(lambda x: x.mul_(2), mutable_argnums=0)), aval(N, N), donate_argnums=0)
    assert len(found.calls) == 1
    assert not found.moves


def test_a_call_that_does_not_change_in_a_loop_moves_out_of_it_only_on_a_cpu():
    f = torch2jax(torch.sin)
    loop = lambda x, y: jax.lax.fori_loop(0, 4, lambda _, c: c * f(y), x)
    on_gpu = program(loop, aval(N), aval(N))
    on_cpu = program(loop, *[jax.ShapeDtypeStruct((N,), jnp.float32)] * 2)
    assert [call.computation in on_gpu.bodies_of_loops() for call in on_gpu.calls] == [True]
    assert [call.computation in on_cpu.bodies_of_loops() for call in on_cpu.calls] == [False]


def test_the_gradient_of_a_loop_has_a_call_in_each_loop():
    loss = lambda x, w: (scan(torch2jax(layer))(x, w) ** 2).sum()
    found = program(jax.grad(loss, 1), *SQUARE)
    assert len(found.calls) == len(found.bodies_of_loops()) == 2
    assert not found.moves["transpose"]


@pytest.mark.parametrize("negated", [False, True])
def test_only_a_branch_has_the_call(negated):
    f = torch2jax(torch.sin)

    def choose(function):
        return lambda p, x: jax.lax.cond(~p if negated else p, lambda: function(x), lambda: x)

    args = aval(dtype=jnp.bool_), aval(N)
    found = program(choose(f), *args)
    (call,) = found.calls
    assert "ENTRY %" + call.computation not in found.text
    assert found.moves == program(choose(jnp.flip), *args).moves


# --- slices ---------------------------------------------------------------------------------------------------------


def opcodes_of(found, computation):
    return Counter(i.opcode for i in found.instructions if i.computation == computation)


def test_a_call_over_the_rows_of_an_array():
    f = torch2jax(torch.sin)
    found = program(lambda xs: jax.lax.scan(lambda _, x: (None, f(x)), None, xs)[1], aval(4, N))
    (call,) = found.calls
    around = opcodes_of(found, call.computation)
    assert (around["dynamic-slice"], around["dynamic-update-slice"]) == ((1, 1) if SLICES_ARE_FUSED else (0, 0))


@pytest.mark.skipif(not SLICES_ARE_FUSED, reason="this XLA copies slices before a call")
def test_xla_places_results_over_operands():
    """Why the native part compares addresses (`placement.h`): in this program nothing keeps the slice from the call."""
    f = torch2jax(torch.sin)
    found = program(lambda x: x.at[3].set(f(x[3])), aval(4, N), donate_argnums=0)
    (call,) = found.calls
    assert found.operand(call, 0).opcode == "slice"
    read = found.operand(found.operand(call, 0), 0)
    written = next(i for i in found.instructions if i.opcode == "dynamic-update-slice")
    assert found.operand(written, 0) == read
    assert found.operand(written, 1) == call
    assert not found.moves


@pytest.mark.skipif(not SLICES_ARE_FUSED, reason="this XLA copies slices before a call")
def test_xla_hands_mutable_operands_over_without_their_results():
    """Another reason for `placement.h`: the operand is a part of what the caller keeps, the result is another array."""
    f = torch2jax(lambda x: x.mul_(2), mutable_argnums=0)
    found = program(lambda x: f(x[3]), aval(4, N))
    (call,) = found.calls
    assert found.operand(call, 0).opcode == "slice"
    assert not found.moves
