"""The program of a call is the call: XLA adds no copy and no change of layout."""

from __future__ import annotations

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from h100 import aval, program
from t2j_core import torch2jax
from t2j_core._base.dtypes import ROWS

WITHOUT_NAMES = {"parameter", "get-tuple-element", "tuple", "bitcast"}  # instructions that do nothing at run time


def steps(of):
    """How often a program does what."""
    return Counter({opcode: count for opcode, count in of.opcodes.items() if opcode not in WITHOUT_NAMES})


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.jax))
def test_every_dtype_of_the_table(x64, row):
    found = program(torch2jax(lambda t: (t.clone(), t[:3])), aval(8, 4, dtype=row.jax))
    assert steps(found) == {"custom-call": 1}
    (call,) = found.calls
    assert call.shape.count("[8,4]{1,0}") == call.shape.count("[3,4]{1,0}") == 1  # rows are together, as in torch


@pytest.mark.parametrize("shape", [(), (1,), (7, 5), (2, 3, 4, 5)], ids=str)
def test_every_rank(shape):
    found = program(torch2jax(lambda t: (t + 1, t.sum())), aval(*shape))
    assert steps(found) == {"custom-call": 1}


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4)], ids=str)
def test_an_empty_array_costs_nothing_but_the_call(shape):
    found = program(torch2jax(lambda t: (t + 1, t.sum())), aval(*shape))
    assert len(found.calls) == 1
    assert steps(found) - Counter(copy=1) == {"custom-call": 1, "constant": 1}  # of no bytes


def test_a_call_of_which_nothing_is_used_does_not_run():
    f = torch2jax(torch.sin)
    assert not program(lambda x: (f(x), jnp.cos(x))[1], aval(8)).calls
    assert not program(torch2jax(lambda t: t[:0]), aval(8)).calls


def test_a_tree_is_one_call():
    f = torch2jax(lambda d, k: {"sum": d["a"] + d["b"], "rest": (d["a"].sin() * k, d["b"].mean())})
    found = program(f, {"a": aval(8, 4), "b": aval(8, 4)}, aval())
    assert steps(found) == {"custom-call": 1}
    assert len(found.calls[0].makers) == 3


def test_equal_calls_are_one():
    f = torch2jax(torch.sin)
    assert len(program(lambda x: f(x) + f(x), aval(8)).calls) == 1
    assert len(program(lambda x: f(x) + f(x + 1), aval(8)).calls) == 2


def test_a_side_effect_happens_as_often_as_it_is_called():
    f = torch2jax(torch.sin, has_side_effect=True)
    assert len(program(lambda x: (f(x), f(x), x)[2], aval(8)).calls) == 2


def test_keys_are_operands_of_the_call():
    f = torch2jax(torch.nn.functional.dropout, rng=True)
    key = aval(dtype=jax.random.key(0).dtype)
    found = program(f, key, aval(8))
    assert steps(found) == {"custom-call": 1}


def test_calls_in_a_row_hand_their_results_over():
    f = torch2jax(lambda x, w: torch.tanh(x @ w))
    found = program(lambda x, w: f(f(f(x, w), w), w), aval(16, 16), aval(16, 16))
    assert steps(found) == {"custom-call": 3}
    first, second, third = found.calls
    assert found.operand(second, 0) == first
    assert found.operand(third, 0) == second


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_only_the_transposes_of_the_program_are_there():
    f = torch2jax(torch.sin)
    found = program(lambda x: f(x.T).T, aval(8, 4))
    assert found.moves == {"transpose": 2}
    assert "[4,8]{1,0}" in found.calls[0].shape


def test_a_product_of_jax_is_laid_out_as_torch_reads_it():
    f = torch2jax(torch.sin)
    found = program(lambda a, b: f(jnp.einsum("ij,kj->ki", a, b)), aval(64, 32), aval(16, 32))
    assert found.moves == program(lambda a, b: jnp.einsum("ij,kj->ki", a, b), aval(64, 32), aval(16, 32)).moves
    assert "[16,64]{1,0}" in found.calls[0].shape


# --- memory -----------------------------------------------------------------------------------------------------------


def double(x):
    return x.mul_(2)


def aliases(found):
    """Whether each call gives the memory of its operand to its result."""
    return all("output_to_operand_aliasing={{}: (0, {})}" in call.text for call in found.calls)


def test_a_mutable_argument_is_copied_unless_it_is_donated():
    f = torch2jax(double, mutable_argnums=0)
    kept, donated = program(f, aval(64)), program(f, aval(64), donate_argnums=0)
    assert (kept.moves, donated.moves) == ({"copy": 1}, {})
    assert aliases(kept)
    assert aliases(donated)
    assert kept.operand(kept.calls[0], 0).opcode == "copy"
    assert donated.operand(donated.calls[0], 0).opcode == "parameter"


def test_an_intermediate_array_is_written_in_place():
    f = torch2jax(double, mutable_argnums=0)
    found = program(lambda x: f(f(jnp.sin(x))), aval(64))
    assert not found.moves
    assert len(found.calls) == 2
    assert aliases(found)


def test_donation_costs_what_it_costs_where_jax_cannot_write_in_place():
    """The result of the call must not lie on its operand, and XLA copies it there: so `mutable_argnums` is for that."""
    f = torch2jax(torch.sin)
    assert program(f, aval(64), donate_argnums=0).moves == program(jnp.flip, aval(64), donate_argnums=0).moves
    assert not program(f, aval(64)).moves


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32])
def test_a_donated_argument_that_fits_no_result_is_left_alone(dtype):
    f = torch2jax(lambda t: t.sum())
    with pytest.warns(UserWarning, match="donated buffers were not usable"):
        found = program(f, aval(64, dtype=dtype), donate_argnums=0)
    assert steps(found) == {"custom-call": 1}


def test_constants_are_operands():
    f = torch2jax(torch.add)
    table = np.random.default_rng(0).normal(size=8).astype(np.float32)
    found = program(lambda x: f(x, table), aval(8))
    assert steps(found) == {"custom-call": 1, "constant": 1}
