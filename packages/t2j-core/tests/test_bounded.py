"""No table grows for ever."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from t2j_core import torch2jax
from t2j_core._base.bounded import remember
from t2j_core._signature.call_tree import _data_types, is_data


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
    monkeypatch.setattr("t2j_core._base.bounded.remember.__defaults__", (8,))
    f = torch2jax(lambda t, n: t * n)
    for n in range(30):
        assert f(jnp.ones(2), n).tolist() == [n, n]
    assert len(f.builder.signatures) <= 8
    assert len(f._routes._forms) <= 8


def test_types_of_arrays():
    import numpy as np

    before = len(_data_types)
    for i in range(300):
        assert is_data(np.zeros(2).view(type(f"Array{i}", (np.ndarray,), {})))
    assert len(_data_types) <= max(256, before)
    assert is_data(jax.numpy.ones(2))
