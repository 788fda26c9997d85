"""What a differentiable function says of itself, and how its derivatives go by name in profiles."""

from __future__ import annotations

import inspect
import re

import jax
import jax.numpy as jnp
import pytest
import torch
from t2j_autodiff import module2jax, torch2jax, torch2jax_with_vjp


def scores(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return torch.tanh(x).exp().sum() * scale


X = jnp.linspace(0.0, 1.0, 1 << 14)  # too large to be run again


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "torch2jax(scores)"),
        ({"depth": 2, "nondiff_argnums": None}, "torch2jax(scores)"),
        ({"depth": None}, "torch2jax(scores, depth=None)"),
        (
            {"outputs": "copy", "nondiff_argnums": 1, "residuals": "recompute"},
            "torch2jax(scores, outputs='copy', nondiff_argnums=(1,), residuals='recompute')",
        ),
    ],
)
def test_the_repr_has_the_options_that_are_not_defaults(options, text):
    assert repr(torch2jax(scores, **options)) == text


def test_the_signature_is_the_functions_own():
    assert inspect.signature(torch2jax(scores)) == inspect.signature(scores)
    with pytest.warns(DeprecationWarning):
        assert inspect.signature(torch2jax_with_vjp(scores)) == inspect.signature(scores)
    assert list(inspect.signature(module2jax(torch.nn.ReLU())[0]).parameters) == ["variables", "input"]


def test_what_core_says_comes_before_the_derivatives():
    f = torch2jax(scores)
    jax.grad(f)(X)
    assert f.explain().splitlines() == [
        "scores(f32[16384]) -> (f32[])",
        "  outputs: inferred by a run without data",
        "  args[0]: lent, not copied",
        "  output: copied (below 1048576 bytes)",
        "  reverse mode: kept autograd graph",
        "  forward mode: torch.func.jvp",
        "  vmap: auto",
    ]


def test_signatures_that_differ_in_a_constant_are_explained_apart():
    f = torch2jax(scores)
    jax.grad(f)(X, 2.0)
    f(X, 3.0)
    first, second = f.explain().split("\nscores(")
    assert "constants: args[1]=2.0" in first
    assert "reverse mode: kept autograd graph" in first
    assert "constants: args[1]=3.0" in second
    assert "reverse mode" not in second


@pytest.mark.parametrize(
    ("transform", "names"),
    [(jax.value_and_grad, {"forward(scores)", "vjp(scores)"}), (jax.vmap, {"vmap(scores)"})],
)
def test_what_is_derived_goes_by_name_in_programs(transform, names):
    x = X if transform is jax.value_and_grad else X[None]
    text = jax.jit(transform(torch2jax(scores))).lower(x).compile().as_text()
    assert set(re.findall('op_name="[^"]*/torch_call/([^"]*)"', text)) == names


def test_derivatives_go_by_name_in_profiles_of_torch():
    gradient = jax.jit(jax.grad(torch2jax(scores)))
    jax.block_until_ready(gradient(X))
    with torch.profiler.profile() as profile:
        jax.block_until_ready(gradient(X))
    assert {"forward(scores)", "vjp(scores)"} <= {event.key for event in profile.key_averages()}
