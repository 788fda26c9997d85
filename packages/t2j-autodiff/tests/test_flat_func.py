"""`torch.func.vmap` and `torch.func.vjp` without trees: `_compat.flat_func`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import torch
from t2j_autodiff import _compat, torch2jax
from t2j_autodiff._compat import flat_func

X, W = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.arange(8.0).reshape(2, 4)


def two(x, w):
    return torch.sin(x @ w), (x * x).sum()


@pytest.mark.parametrize("dims", [(0, None), (None, 1), (1, 0)])
def test_a_batch_is_that_of_torch(dims):
    f, size = (lambda x, w: (x.sum() * w.sum(), x.cos())), {0: 3, 1: 2, None: 4}[dims[0]]
    got = _compat.flat_vmap(f, dims, size, "error")(X, W)
    for mine, other in zip(got, torch.func.vmap(f, dims)(X, W), strict=True):
        torch.testing.assert_close(mine, other)


def test_results_that_no_operand_reaches():
    y, z = _compat.flat_vmap(lambda x: (torch.ones(2), x), (0,), 3, "error")(X)
    assert y.tolist() == [[1, 1]] * 3 and torch.equal(z, X)


def test_batches_of_pullbacks_of_batches():
    def gradient(x, w, ct):
        rows = _compat.flat_vmap(two, (0, None), 3, "error")
        return _compat.flat_vjp(lambda w: (rows(x, w)[0],), [w], [ct])

    def in_torch(x, w, ct):
        return torch.func.vjp(lambda w: torch.sin(x @ w), w)[1](ct)

    xs, cts = torch.stack([X, 2 * X]), torch.ones(2, 3, 4)
    got = _compat.flat_vmap(gradient, (0, None, 0), 2, "error")(xs, W, cts)
    torch.testing.assert_close(got[0], torch.func.vmap(in_torch, (0, None, 0))(xs, W, cts)[0])


def test_a_pullback_of_a_pullback():
    gradient = lambda x: _compat.flat_vjp(lambda x: ((x**3).sum(),), [x], [torch.ones(())])
    torch.testing.assert_close(_compat.flat_vjp(gradient, [X], [torch.ones(3, 2)])[0], 6 * X)


def test_an_operand_of_no_use_has_zeros_as_cotangent_and_other_dtypes_are_cast():
    f = lambda x, unused: (x.to(torch.bfloat16), torch.ones(2))
    dx, none = _compat.flat_vjp(f, [X, W], [torch.ones(3, 2), torch.ones(2)])
    assert dx.tolist() == [[1, 1]] * 3 and not none.any() and none.shape == W.shape


@pytest.mark.parametrize("outer", ["vmap", "vjp"])
def test_an_exception_leaves_no_level(outer):
    def fails(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        if outer == "vmap":
            _compat.flat_vmap(lambda x: _compat.flat_vjp(fails, [x], [x]), (0,), 3, "error")(X)
        else:
            _compat.flat_vjp(_compat.flat_vmap(fails, (0,), 3, "error"), [X], [X])
    assert not _compat.in_transform()
    with pytest.raises(RuntimeError):  # in a level it would be allowed
        torch.func.vmap(lambda x: x.requires_grad_())(X)


def test_hooks_for_saved_tensors_are_refused_in_pullbacks():
    same = lambda t: t
    with torch.autograd.graph.saved_tensors_hooks(same, same), pytest.raises(RuntimeError, match="hooks"):
        _compat.flat_vjp(lambda x: (x.exp(),), [X], [X])


def test_random_numbers():
    draw = lambda x: (x + torch.rand(()),)
    with pytest.raises(RuntimeError, match="randomness"):
        _compat.flat_vmap(draw, (0,), 3, "error")(X)
    assert len(_compat.flat_vmap(draw, (0,), 3, "same")(torch.zeros(3))[0].unique()) == 1
    assert len(_compat.flat_vmap(draw, (0,), 3, "different")(torch.zeros(3))[0].unique()) == 3


def test_torchs_decompositions_are_loaded_once(monkeypatch):
    loaded = []
    monkeypatch.setattr(flat_func, "lazy_load_decompositions", lambda: loaded.append(True))
    flat_func._load_decompositions.cache_clear()
    for _ in range(2):
        _compat.flat_vmap(two, (0, None), 3, "error")(X, W)
    assert loaded == [True]


def test_a_result_that_is_no_tensor():
    f = torch2jax(lambda x: 3.0, output_shapes=jax.ShapeDtypeStruct((), jnp.float32), vmap_method="vmap")
    with pytest.raises(TypeError, match=r"returns tensors, and this one returns a float"):
        jax.vmap(f)(jnp.ones(3))
