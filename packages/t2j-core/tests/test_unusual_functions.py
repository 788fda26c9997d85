"""Callables of odd kinds, and functions that do odd things."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import BadEq, here, x
from t2j_core import Size, j2t, t2j, torch2jax

pytestmark = pytest.mark.usefixtures("intact")


class Slotted:
    __slots__ = ("n",)

    def __init__(self, n):
        self.n = n

    def __call__(self, t):
        return t + self.n


def test_callables_of_odd_kinds():
    class Unhashable(BadEq):
        __hash__ = None

    callables = [
        BadEq(),
        Unhashable(),
        Slotted(1),
        functools.partial(torch.add, other=1),
        functools.partial(lambda one, t: t + one, 1),
        torch.tensor(1.0).add,
        torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity()),
        functools.wraps(BadEq)(lambda t: t + 1),
    ]
    for function in callables:
        f = torch2jax(function)
        want = here if isinstance(function, torch.nn.Module) else here + 1
        for call in (f, f, jax.jit(f)):
            np.testing.assert_array_equal(call(x), want)
        assert repr(f)


def test_an_operator_of_an_extension():
    with torch.library._scoped_library("t2j_test_extension", "FRAGMENT") as library:
        library.define("doubled(Tensor x) -> Tensor")
        library.impl("doubled", lambda t: torch.from_numpy(t.numpy() * 2), "CPU")  # no kernel for shapes alone
        f = torch2jax(lambda t: torch.ops.t2j_test_extension.doubled(t) + 1)
        for call in (f, f, jax.jit(f)):
            np.testing.assert_array_equal(call(x), 2 * here + 1)


def test_a_function_that_wraps_and_drops_wrappers():
    def function(t):
        g = torch2jax(lambda u: u + 1)
        del g
        return t + 1

    np.testing.assert_array_equal(torch2jax(function)(x), here + 1)


def test_a_function_that_collects_garbage_and_allocates():
    def function(t):
        import gc

        for _ in range(3):
            gc.collect()
            torch.empty(1 << 16)
        return t + 1

    f = torch2jax(function, output_shapes=Size(2, 3))
    for call in (f, jax.jit(f)):
        np.testing.assert_array_equal(call(x), here + 1)


def test_a_function_that_swaps_itself_out():
    """The program was compiled for the first behaviour; the object decides what runs."""

    class Model:
        def __init__(self):
            self.n = 1.0

        def __call__(self, t):
            self.n += 1
            return t * self.n

    model = Model()
    f = torch2jax(model, output_shapes=Size(2, 3))
    np.testing.assert_array_equal(f(x), here * 2)
    np.testing.assert_array_equal(f(x), here * 3)


def test_a_call_during_tracing_of_another():
    f, g = torch2jax(lambda t: t + 1), torch2jax(lambda t: t * 2)

    @jax.jit
    def program(a):
        eager = f(jnp.ones((2, 3)))  # a constant of the program
        return g(f(a)) + eager

    np.testing.assert_array_equal(program(x), 2 * (here + 1) + 2)


def test_calls_of_each_other_in_sequence():
    f, g = torch2jax(lambda t: t + 1), torch2jax(lambda t: t * 2)
    out = x
    for _ in range(20):
        out = t2j(j2t(g(f(out)))) / 2
    np.testing.assert_array_equal(out, here + 20)
