"""Runs without data do not know the elements of sparse tensors, and what they show of none is confirmed on data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_core import DataDependentShapeError, OutputError, _compat, torch2jax

INDICES = torch.tensor([[0, 1, 1], [2, 0, 2]])
X = jnp.arange(1.0, 4)
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:Sparse invariant")


@pytest.fixture(params=[False, True], ids=["meta", "fake"])
def dynamo(request, monkeypatch):
    """Once torch's compiler is imported, what fails on the meta device is run on fake tensors too."""
    monkeypatch.setattr(_compat, "dynamo_is_loaded", lambda: request.param)


def sparse(v):
    return torch.sparse_coo_tensor(INDICES, v, (2, 3)).coalesce()


def sparse_or_nothing(v):
    try:
        return sparse(v).values()
    except Exception:
        return v[:0]


FIXED = {
    "values": lambda v: sparse(v).values(),
    "indices": lambda v: sparse(v).indices(),
    "csr": lambda v: sparse(v).to_sparse_csr().values(),
    "sum": lambda v: torch.sparse.sum(sparse(v), 0).values(),
    "size": lambda v: v.new_ones(sparse(v)._nnz()),
    "beside": lambda v: (v, sparse(v).values()),
    "scalar": lambda v: v.sum() + sparse(v).values().sum(),
    "product": lambda v: torch.sparse.mm(sparse(v), v[:, None]),
    "handled": sparse_or_nothing,
    "constant": lambda v: (v, sparse(v)._nnz()),
    "constant alone": lambda v: sparse(v)._nnz(),
    "of a constant": lambda v: v * sparse(torch.ones(3)).values(),
    "mkldnn": lambda v: v[None].to_mkldnn().to_dense(),
}
FROM_VALUES = {
    "coo": lambda x: x.diag().to_sparse().values(),
    "indices": lambda x: x.diag().to_sparse().indices(),
    "csr": lambda x: x.diag().to_sparse_csr().values(),
    "size": lambda x: x.new_ones(x.diag().to_sparse()._nnz()),
}


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("name", FIXED)
def test_what_is_read_from_sparse_tensors(name):
    fn = FIXED[name]
    expected, found = fn(torch.arange(1.0, 4)), torch2jax(fn)(X)
    for want, got in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("name", FROM_VALUES)
def test_the_number_of_elements_depends_on_values(name):
    with pytest.raises(DataDependentShapeError):
        torch2jax(FROM_VALUES[name])(X)


def test_quantised_results_of_fake_tensors(monkeypatch):
    monkeypatch.setattr(_compat, "dynamo_is_loaded", lambda: True)
    fn = lambda x: x.dequantize() if x.is_quantized else torch.quantize_per_tensor(x, 0.5, 0, torch.qint8).int_repr()
    np.testing.assert_array_equal(torch2jax(fn)(X), fn(torch.arange(1.0, 4)))


@pytest.mark.usefixtures("dynamo")
def test_results_without_elements_are_confirmed_on_data():
    seen = []

    def fn(x):
        seen.append(x.is_meta)
        return x[:0] if x.is_meta else 2 * x

    f = torch2jax(fn)
    np.testing.assert_array_equal(f(X), [2, 4, 6])
    np.testing.assert_array_equal(jax.jit(f)(X), [2, 4, 6])
    assert seen[0] and not any(seen[1:])


@pytest.mark.parametrize(
    "fn", [lambda x: x[0:0], lambda x: (x, x.new_empty(0)), lambda x: x.nonzero_static(size=0)], ids=["0", "1", "2"]
)
def test_results_that_have_no_elements(fn):
    for x in (X, X[:0]):
        for want, got in zip(
            jax.tree.leaves(fn(torch.asarray(np.array(x)))), jax.tree.leaves(torch2jax(fn)(x)), strict=True
        ):
            assert got.shape == want.shape


def test_a_function_that_takes_no_made_up_value_may_return_nothing():
    def fn(x):
        if not x.is_meta and x[0] != 17:
            raise ValueError(f"got {x[0]}")
        return x[:0]

    f = torch2jax(fn)
    assert f(17 * X).shape == (0,)
    with pytest.raises(ValueError, match="got 1"):  # XLA does not drop the call
        jax.block_until_ready(f(X))


def test_constants_say_what_they_say_of_data():
    assert torch2jax(lambda x: (x, str(x.device), x.is_meta, x.device.type))(X)[1:] == ("cpu", False, "cpu")
    assert torch2jax(lambda x: x.is_meta)(X) is False
    assert torch2jax(lambda x: x.is_contiguous())(X) is True


def test_a_wrong_declaration_of_nothing():
    f = torch2jax(lambda x: 2 * x, output_shapes=(0,))
    with pytest.raises(OutputError, match=r"f32\[3\]"):
        jax.block_until_ready(f(X))
    assert torch2jax(lambda x: x[:0], output_shapes=(0,))(X).shape == (0,)
