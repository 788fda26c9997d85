"""The pair of a forward and its backward survives compilation, so that the backward need not read the device.

`packages/t2j-autodiff/tests/test_pairs.py` tests the pairs of lowered programs, and what calls do with them.
"""

from __future__ import annotations

import jax
import pytest
import torch
from h100 import aval, program
from t2j_autodiff import torch2jax

N = 128
SQUARE = (aval(N, N), aval(N, N))


def layer(x, w):
    return torch.tanh(x @ w)


def loss(f):
    return lambda x, w: (f(f(x, w), w) ** 2).sum()


def pairs(found):
    """For each call, the number of its pair."""
    return [call.attribute("pair") for call in found.calls]


def assert_each_backward_has_the_pair_of_the_forward_that_it_reads(found):
    forwards = [call for call in found.calls if len(call.makers) == 2]
    backwards = [call for call in found.calls if call not in forwards]
    assert len(forwards) == len(backwards) == len({call.attribute("pair") for call in forwards}) == 2
    for backward in backwards:
        (forward,) = (found.operand(backward, i) for i in range(2, 4) if found.operand(backward, i) in forwards)
        assert backward.attribute("pair") == forward.attribute("pair") is not None


def test_two_layers_in_one_block():
    found = program(jax.value_and_grad(loss(torch2jax(layer)), 1), *SQUARE)
    assert_each_backward_has_the_pair_of_the_forward_that_it_reads(found)


@pytest.mark.parametrize("argnums", [0, (0, 1)], ids=str)
def test_other_gradients_of_two_layers(argnums):
    found = program(jax.grad(loss(torch2jax(layer)), argnums), *SQUARE)
    assert_each_backward_has_the_pair_of_the_forward_that_it_reads(found)


def test_a_checkpoint_pairs_the_forward_that_it_repeats():
    found = program(jax.value_and_grad(jax.checkpoint(loss(torch2jax(layer))), 1), *SQUARE)
    paired = [pair for pair in pairs(found) if pair is not None]
    assert len(found.calls) == 6
    assert sorted(paired.count(pair) for pair in set(paired)) == [2, 2]


def test_equal_layers_stay_apart():
    """With the same operands they would be one call, whose graph two backwards would want."""
    f = torch2jax(layer)
    found = program(jax.grad(lambda x, w: (f(x, w) * f(x, w)).sum(), 1), *SQUARE)
    of_pair = {pair: pairs(found).count(pair) for pair in pairs(found)}
    assert None not in of_pair
    assert set(of_pair.values()) <= {2, 3}


def test_loops_have_no_pairs():
    f = torch2jax(layer)
    loop = lambda x, w: (jax.lax.scan(lambda c, _: (f(c, w), None), x, length=3)[0] ** 2).sum()
    found = program(jax.grad(loop, 1), *SQUARE)
    assert len(found.calls) == 2
    assert pairs(found) == [None, None]


@pytest.mark.parametrize("residuals", ["recompute", "graph"])
def test_what_keeps_no_graph_has_no_pairs(residuals):
    found = program(jax.grad(loss(torch2jax(layer, residuals=residuals)), 1), *SQUARE)
    assert len(found.calls) >= 3
    assert set(pairs(found)) == {None}
