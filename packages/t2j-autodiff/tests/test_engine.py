"""`torch.autograd.grad` by the short way: `_compat.engine_grad`, and from edges."""

from __future__ import annotations

import pytest
import torch
from t2j_autodiff import _compat
from torch.overrides import TorchFunctionMode

ONE = torch.ones(())


def leaves(n):
    return [torch.full((2, 2), 1.0 + i, requires_grad=True) for i in range(n)]


def test_gradients_are_those_of_torch():
    x, w, unused = leaves(3)
    y = [(x @ w).sum(), x.exp()]
    cotangents = [2 * ONE, torch.arange(4.0).reshape(2, 2)]
    expected = torch.autograd.grad(y, [x, w, unused], cotangents, allow_unused=True, retain_graph=True)
    got = _compat.engine_grad(y, [x, w, unused], cotangents, create_graph=False)
    assert got[2] is None
    assert all(map(torch.equal, got[:2], expected[:2]))
    assert not any(g.requires_grad for g in got[:2])
    with pytest.raises(RuntimeError, match="second time"):  # the graph is freed
        _compat.engine_grad([y[1]], [x], [cotangents[1]], create_graph=False)


def test_gradients_of_gradients():
    (x,) = leaves(1)
    (first,) = _compat.engine_grad([(x**3).sum()], [x], [ONE], create_graph=True)
    (second,) = _compat.engine_grad([first.sum()], [x], [ONE], create_graph=False)
    assert torch.equal(second, 6 * x)


def test_a_cotangent_of_another_shape_is_refused():
    (x,) = leaves(1)
    with pytest.raises(RuntimeError, match="[Mm]ismatch in shape"):
        _compat.engine_grad([x.sum(0)], [x], [ONE], create_graph=False)


def test_a_function_mode_sees_the_call():
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    (x,) = leaves(1)
    y = x.sum()
    with Watch():
        _compat.engine_grad([y], [x], [ONE], create_graph=False)
    assert torch.autograd.grad in seen


def test_gradients_from_edges_are_those_of_torch():
    x, w, unused = leaves(3)
    y = [(x @ w).sum(), x.exp()]
    edges = [torch.autograd.graph.get_gradient_edge(t) for t in y]
    cotangents = [2 * ONE, torch.arange(4.0).reshape(2, 2)]
    expected = torch.autograd.grad(y, [x, w, unused], cotangents, allow_unused=True, retain_graph=True)
    for retain_graph in (True, False):
        got = _compat.engine_grad_of_edges(edges, [x, w, unused], cotangents, retain_graph=retain_graph)
        assert got[2] is None
        assert all(map(torch.equal, got[:2], expected[:2]))
    with pytest.raises(RuntimeError, match="second time"):  # the graph is freed
        _compat.engine_grad_of_edges(edges, [x], cotangents, retain_graph=False)
