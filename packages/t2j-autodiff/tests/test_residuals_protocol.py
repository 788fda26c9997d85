"""The contract of residuals: what a new way to get them has to implement."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import torch2jax
from t2j_autodiff._residuals import choice
from t2j_autodiff._residuals.protocol import Residuals
from t2j_core.extend import Leaf

X = jnp.linspace(-1, 1, 6)


class KeepsCosines(Residuals):
    """For the sine alone: its residual is the cosine."""

    used = 0

    def __init__(self, function):
        super().__init__(function)
        (operand,) = function.operands
        self.leaves = (Leaf(operand.shape, operand.dtype, operand.torch_dtype),)
        function.explain("cosines")

    def forward(self, value, to_record, axes):
        return lambda x: (*value(x), x.cos())

    def pullback(self, ins, outs, axes, recompute):
        def pull(x, cosines, cotangent):
            KeepsCosines.used += 1
            return (cosines * cotangent,)

        return pull


@pytest.fixture
def sine(monkeypatch):
    monkeypatch.setattr(choice, "AutogradGraphs", KeepsCosines)
    monkeypatch.setattr(KeepsCosines, "used", 0)

    def fn(x):
        for _ in range(20):  # too many operations to run them again in the backward
            x = x * 1.0
        return torch.sin(x)

    return torch2jax(fn)


TRANSFORMS = {
    "grad": lambda f: jax.grad(lambda x: f(x).sum())(X),
    "jit": lambda f: jax.jit(jax.grad(lambda x: f(x).sum()))(X),
    "batch": lambda f: jax.vmap(jax.grad(lambda x: f(x).sum()))(jnp.stack([X, 2 * X])),
    "batch in a batch": lambda f: jax.vmap(jax.vmap(jax.grad(f)))(jnp.stack([X, 2 * X])),
    "jacobian": lambda f: jax.jacrev(f)(X),
    "linearized": lambda f: jax.linear_transpose(jax.linearize(f, X)[1], X)(X)[0],
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_one_class_is_a_new_way_to_get_residuals(sine, name):
    np.testing.assert_allclose(TRANSFORMS[name](sine), TRANSFORMS[name](jnp.sin), rtol=1e-5, atol=1e-6)
    assert KeepsCosines.used == 1
    assert "cosines" in sine.explain()


def test_a_pushforward_needs_no_residuals(sine):
    np.testing.assert_allclose(jax.jvp(sine, (X,), (X,))[1], jnp.cos(X) * X, rtol=1e-5)
    assert KeepsCosines.used == 0


def test_a_second_derivative_needs_no_residuals(sine):
    hessian = jax.hessian(lambda x: sine(x).sum())(X)
    np.testing.assert_allclose(hessian, jnp.diag(-jnp.sin(X)), rtol=1e-5, atol=1e-6)
