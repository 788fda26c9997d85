"""No table grows for ever."""

from __future__ import annotations

import weakref

import jax.numpy as jnp
import numpy as np
import pytest
from t2j_core import torch2jax
from t2j_core._base.bounded import remember
from t2j_core._signature.call_tree import is_data
from t2j_core.testing import collect, live_functions


def test_the_oldest_go():
    table = {}
    for i in range(10):
        assert remember(table, i, str(i), most=4) == str(i)
    assert table == {6: "6", 7: "7", 8: "8", 9: "9"}


def test_the_first_value_of_a_key_counts():
    table = {}
    assert remember(table, "k", 1) == 1
    assert remember(table, "k", 2) == 1
    assert table == {"k": 1}


def test_a_table_of_one():
    table = {}
    for i in range(3):
        remember(table, i, i, most=1)
    assert table == {2: 2}


@pytest.mark.filterwarnings("ignore:.*was compiled")
def test_signatures_of_a_function(monkeypatch):
    monkeypatch.setattr(remember, "__defaults__", (8,))  # for the real limit XLA would compile for minutes
    collect(passes=2)
    before = live_functions()
    f = torch2jax(lambda t, n: t * n)
    for n in range(30):
        assert f(jnp.ones(2), n).tolist() == [n, n]
    collect(passes=2)
    assert 0 < live_functions() - before <= 8


def test_types_of_arrays():
    types = []
    for i in range(300):
        kind = type(f"Array{i}", (np.ndarray,), {})
        types.append(weakref.ref(kind))
        assert is_data(np.zeros(2).view(kind))
    del kind
    collect(passes=2)
    assert sum(reference() is not None for reference in types) <= 256
    assert is_data(jnp.ones(2))
