"""Tensors without data, from the run that infers outputs, are not computed with in a real call."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from common import raises, warns
from t2j_core import Size, T2jError, T2jWarning, module2jax, torch2jax

x = jnp.arange(1.0, 4)


class Slots:
    __slots__ = ("table",)


KEPT = ("Doubled uses a tensor", "inferred its outputs", "no data")


class Doubled(torch.nn.Module):
    """A module that keeps something computed of a parameter where it is not put back after a call."""

    def __init__(self, keep):
        super().__init__()
        self.weight = torch.nn.Parameter(2 * torch.eye(3))
        self.keep = keep

    def forward(self, x):
        return x @ self.keep(lambda: 2 * self.weight)


def in_a_global():
    memo = {}
    return lambda make: memo["table"] if "table" in memo else memo.setdefault("table", make())


def in_slots():
    holder = Slots()

    def keep(make):
        if not hasattr(holder, "table"):
            holder.table = make()
        return holder.table

    return keep


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("keep", [in_a_global, in_slots])
def test_a_table_of_a_parameter_in_a_cache_of_the_users(keep, jitted):
    with warns(T2jWarning, what=("Doubled keeps a tensor", "`output_shapes=`")):
        apply, variables = module2jax(Doubled(keep()))
        with raises(Exception, what=KEPT):
            (jax.jit(apply) if jitted else apply)(variables, x)
    with raises(Exception, what=KEPT):
        apply(variables, jnp.ones((2, 3)))  # of another signature


def test_a_table_of_an_argument():
    memo = {}

    def function(x):
        if "table" not in memo:
            memo["table"] = torch.outer(x, x)
        return x @ memo["table"]

    f = torch2jax(function)
    with warns(T2jWarning, what="function keeps a tensor"), raises(T2jError, remedy="`output_shapes=`"):
        f(x)


def test_declared_outputs_need_no_run_without_data():
    apply, variables = module2jax(Doubled(in_a_global()), output_shapes=Size(3))
    for _ in range(2):
        np.testing.assert_array_equal(apply(variables, x), 4 * x)


def test_what_is_kept_and_not_used_is_no_error():
    seen = []

    def function(x):
        seen.append(x * 2)
        return x + 1

    with warns(T2jWarning, what="function keeps a tensor"):
        f = torch2jax(function, x)
    np.testing.assert_array_equal(f(x), x + 1)
    assert seen[-1].tolist() == [2.0, 4.0, 6.0]


def test_a_table_of_constants_may_be_kept():
    memo = {}

    def function(x):
        if "mask" not in memo:
            memo["mask"] = torch.tril(torch.ones(3, 3))
        return x @ memo["mask"]

    f = torch2jax(function)
    for call in (f, jax.jit(f)):
        np.testing.assert_array_equal(call(x), x @ jnp.tril(jnp.ones((3, 3))))
