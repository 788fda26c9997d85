"""Backwards that raise: the error is the user's each time, and the pullback can be called again."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import torch2jax

X = jnp.arange(4.0)


class Moody:
    """A cube whose backward raises while it is asked to."""

    def __init__(self):
        self.raises = True
        self.forwards = 0
        moody = self

        class Cube(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                moody.forwards += 1
                ctx.save_for_backward(x)
                return x**3

            @staticmethod
            def backward(ctx, g):
                if moody.raises:
                    raise ValueError("not today")
                return 3 * ctx.saved_tensors[0] ** 2 * g

        self.cube = Cube.apply

    def __call__(self, x):
        for _ in range(15):  # too many operations to run them again in the backward
            x = x * 1.0
        return self.cube(x).sum()


CALLS = {
    "eager": (lambda f: jax.vjp(f, X)[1], lambda pull: pull(jnp.float32(1))[0]),
    "jit": (lambda f: jax.vjp(f, X)[1], lambda pull: jax.jit(pull)(jnp.float32(1))[0]),
    "batch": (lambda f: jax.vjp(jax.vmap(f), jnp.stack([X, X]))[1], lambda pull: pull(jnp.ones(2))[0][1]),
    "batch of cotangents": (lambda f: jax.vjp(f, X)[1], lambda pull: jax.vmap(pull)(jnp.ones(2))[0][1]),
}


@pytest.mark.filterwarnings("ignore::t2j_core.PerformanceWarning")
@pytest.mark.parametrize("residuals", ["auto", "recompute"])
@pytest.mark.parametrize("call", CALLS)
def test_a_pullback_is_called_again_after_its_backward_has_raised(call, residuals):
    moody = Moody()
    pulled, pull = CALLS[call]
    back = pulled(torch2jax(moody, residuals=residuals))
    for _ in range(2):
        with pytest.raises(Exception, match="not today"):
            jax.block_until_ready(pull(back))
    moody.raises = False
    for _ in range(2):
        np.testing.assert_allclose(pull(back), 3 * X**2)


def test_a_backward_that_has_raised_is_no_reason_to_keep_no_graphs():
    moody = Moody()
    f = torch2jax(moody)
    with pytest.raises(ValueError, match="not today"):
        jax.grad(f)(X)
    assert "reverse mode: kept autograd graph" in f.explain()
    moody.raises, moody.forwards = False, 0
    np.testing.assert_allclose(jax.grad(f)(X), 3 * X**2)
    assert moody.forwards == 1


def test_a_graph_whose_backward_fails_where_another_works_is_not_kept_again():
    weight = torch.ones(4, requires_grad=True)

    def scaled(x):
        for _ in range(15):
            x = x * 1.0
        return (x * weight).sin().sum()

    f = torch2jax(scaled)
    _, pull = jax.vjp(f, X)
    with torch.no_grad():
        weight.mul_(2)  # which torch refuses in the backward of the graph
    np.testing.assert_allclose(pull(jnp.float32(1))[0], 2 * jnp.cos(2 * X), rtol=1e-6)
    assert "reverse mode: recompute (the backward of a kept graph failed" in f.explain()
