"""Outputs that are declared in other containers than the function returns."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict, namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises
from t2j_core import OutputError, Size, torch2jax

x = jnp.arange(4.0)
Pair = namedtuple("Pair", ["low", "high"])
S = jax.ShapeDtypeStruct
LOW, HIGH = Size(4), Size(2)


def both(t):
    return t + 1, t[:2] * 2


@dataclasses.dataclass
class Result:
    low: object
    high: object


SEQUENCES = {
    "list for tuple": ([LOW, HIGH], lambda t: both(t)),
    "tuple for list": ((LOW, HIGH), lambda t: list(both(t))),
    "tuple for namedtuple": ((LOW, HIGH), lambda t: Pair(*both(t))),
    "list for namedtuple": ([LOW, HIGH], lambda t: Pair(*both(t))),
    "namedtuple for tuple": (Pair(LOW, HIGH), lambda t: both(t)),
}
MAPPINGS = {
    "OrderedDict for dict": (OrderedDict(low=LOW, high=HIGH), lambda t: dict(zip(Pair._fields, both(t), strict=True))),
    "another order": (OrderedDict(high=HIGH, low=LOW), lambda t: dict(zip(Pair._fields, both(t), strict=True))),
    "dict for OrderedDict": ({"low": LOW, "high": HIGH}, lambda t: OrderedDict(high=both(t)[1], low=both(t)[0])),
    "dict for defaultdict": ({"low": LOW, "high": HIGH}, lambda t: defaultdict(int, low=both(t)[0], high=both(t)[1])),
    "dict for UserDict": ({"low": LOW, "high": HIGH}, lambda t: UserDict(low=both(t)[0], high=both(t)[1])),
    "dict for dataclass": ({"low": LOW, "high": HIGH}, lambda t: Result(*both(t))),
}


def check(got, declared):
    assert jax.tree.structure(got) == jax.tree.structure(jax.tree.map(lambda _: 0, declared, is_leaf=_is_size))
    found = (got["low"], got["high"]) if isinstance(got, dict) else got
    for mine, want in zip(found, both(torch.arange(4.0)), strict=True):
        np.testing.assert_array_equal(mine, want)


def _is_size(node):
    return isinstance(node, Size)


@pytest.mark.parametrize("name", [*SEQUENCES, *MAPPINGS])
def test_the_user_gets_the_tree_that_was_declared(name):
    declared, function = {**SEQUENCES, **MAPPINGS}[name]
    f = torch2jax(function, output_shapes=declared)
    for call in (f, f, jax.jit(f)):
        check(call(x), declared)


def test_what_torch_returns_in_a_type_of_its_own():
    wanted = torch.topk(torch.arange(4.0), 2)
    shapes = S((2,), jnp.float32), S((2,), jnp.int32)
    for declared in (shapes, list(shapes), torch.topk(torch.ones(4), 2)):
        got = torch2jax(lambda t: torch.topk(t, 2), output_shapes=declared)(x)
        np.testing.assert_array_equal(got[0], wanted.values)
        np.testing.assert_array_equal(got[1], wanted.indices)


def test_containers_in_containers():
    declared = OrderedDict(b=[LOW, {"c": (HIGH,)}], a=LOW)
    f = torch2jax(lambda t: {"a": t, "b": (t + 1, OrderedDict(c=[t[:2]]))}, output_shapes=declared)
    got = jax.jit(f)(x)
    assert jax.tree.structure(got) == jax.tree.structure(OrderedDict(b=[0, {"c": (0,)}], a=0))
    np.testing.assert_array_equal(got["b"][0], np.arange(4) + 1)
    np.testing.assert_array_equal(got["b"][1]["c"][0], np.arange(2))
    np.testing.assert_array_equal(got["a"], np.arange(4))


def test_a_function_whose_containers_change():
    f = torch2jax(lambda t: list(both(t)) if t[0] > 0 else both(t), output_shapes=[LOW, HIGH])
    for first in (0.0, 1.0, 0.0):
        got = f(x + first)
        np.testing.assert_array_equal(got[1], (np.arange(2) + first) * 2)


DIFFERENT = {
    "fewer": ((LOW, LOW), lambda t: (t,), "output", "tuple of 2", "tuple of 1"),
    "a mapping": ((LOW, LOW), lambda t: {"a": t, "b": t}, "output", "tuple of 2", "dict with the keys 'a', 'b'"),
    "another key": ({"a": LOW, "b": LOW}, lambda t: {"a": t, "c": t}, "output['b']", "a tensor", "keys are 'a', 'c'"),
    "a hole": ({"a": [LOW, LOW]}, lambda t: {"a": (t, None)}, "output['a'][1]", "a tensor", "None"),
    "deeper": ({"a": (LOW, LOW)}, lambda t: {"a": (t, (t,))}, "output['a'][1]", "a tensor", "tuple of 1"),
    "field": (Pair(LOW, LOW), lambda t: (t, [t]), "output.high", "a tensor", "list of 1"),
    "shape": ({"a": [LOW, LOW]}, lambda t: {"a": (t, t[:3])}, "output['a'][1]", "f32[4]", "f32[3]"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_from_the_declaration_is_named(name):
    declared, function, place, expected, got = DIFFERENT[name]
    f = torch2jax(function, output_shapes=declared)
    for _ in range(2):
        with raises(OutputError, what=f"{place}", expected=expected, got=got, remedy="`output_shapes`"):
            f(x)


def test_a_leaf_that_describes_nothing_is_named():
    from t2j_core import ArgumentError

    with raises(ArgumentError, what=("`output_shapes`", "at ['b'][1]"), got="str", remedy="`Size(shape)`"):
        torch2jax(both, output_shapes={"a": LOW, "b": (LOW, "f32")})(x)


def test_an_inferred_tree_that_changes_is_not_blamed_on_output_shapes():
    f = torch2jax(lambda t: (t, t) if t.device.type == "meta" else (t,))
    with raises(OutputError, expected="tuple of 2", got="tuple of 1", remedy="the same tree", lacks="output_shapes"):
        f(x)
