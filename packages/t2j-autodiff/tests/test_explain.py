"""What a differentiable function says of itself, and how its derivatives go by name in profiles."""

from __future__ import annotations

import inspect
import re

import jax
import jax.numpy as jnp
import pytest
import torch
from t2j_autodiff import PerformanceWarning, module2jax, torch2jax, torch2jax_with_vjp


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
        "  output: copied (below 1,048,576 bytes)",
        "  reverse mode: kept autograd graph",
        "  forward mode: torch.func.jvp",
        "  vmap: not used so far",
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


# --- batches -------------------------------------------------------------------------------------------------------


def batches(f) -> list[str]:
    """What is said of batches. Long lines go on in the next one, further to the right."""
    text = re.sub(r"\n {4,}", " ", f.explain())
    return [line.strip() for line in text.splitlines() if line.startswith("  vmap")]


def test_a_batch_is_told_with_its_size_and_how_it_ran():
    f = torch2jax(scores)
    jax.vmap(f)(X.reshape(4, -1))
    assert batches(f) == ["vmap of 4: torch.func.vmap"]
    jax.vmap(jax.vmap(f))(X.reshape(2, 4, -1))
    assert "vmap of 2, 4: torch.func.vmap" in batches(f)


def test_each_signature_has_its_own_batches():
    f = torch2jax(scores)
    jax.vmap(f)(jnp.ones((3, 2)))
    f(jnp.ones(5))
    first, second = f.explain().split("\nscores(")
    assert "vmap of 3: torch.func.vmap" in first
    assert "vmap: not used so far" in second


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"vmap_method": "vmap"}, "torch.func.vmap"),
        ({"vmap_chunk_size": 2}, "torch.func.vmap, 2 examples at once"),
        ({"vmap_method": "sequential"}, 'examples one after another (`vmap_method="sequential"`)'),
        ({"vmap_method": "expand_dims"}, 'the function takes the axis (`vmap_method="expand_dims"`)'),
        ({"vmap_method": "broadcast_all"}, 'the function takes the axis (`vmap_method="broadcast_all"`)'),
    ],
)
def test_the_option_that_decides_is_named(options, text):
    f = torch2jax(torch.tanh, **options)
    jax.vmap(f)(jnp.ones((4, 3)))
    assert batches(f) == [f"vmap of 4: {text}"]


def test_a_batch_of_keys_is_told():
    f = torch2jax(lambda x: x + torch.rand(3), rng=True)
    jax.vmap(f)(jax.random.split(jax.random.key(0), 4), jnp.ones((4, 3)))
    assert batches(f) == [
        "vmap of 4: examples one after another, so that each draws with its key what it would draw alone"
    ]


def test_the_reason_is_told_where_torch_cannot_batch():
    def looks_at_values(x):
        return x * 2 if x.sum() > 0 else x * 3

    f = torch2jax(looks_at_values)
    with pytest.warns(PerformanceWarning, match="one after another"):
        jax.vmap(f)(jnp.ones((4, 3)))
    (text,) = batches(f)
    assert text.startswith(
        "vmap of 4: examples one after another, because torch.func.vmap cannot batch it (RuntimeError"
    )
    jax.vmap(f)(jnp.ones((5, 3)))
    assert batches(f) == [text.replace("vmap of 4", "vmap of 4, 5")]
    assert max(map(len, f.explain().splitlines())) <= 100


def test_the_gradient_of_each_example():
    f = torch2jax(scores)
    jax.vmap(jax.grad(f))(jnp.ones((4, 3)))  # runs the forward again
    assert batches(f) == ["vmap of 4: torch.func.vmap", "vmap of 4, reverse mode: torch.func.vmap"]
    kept = torch2jax(scores)
    jax.vmap(jax.grad(kept))(jnp.stack([X, X]))  # the graph is that of the batch
    assert batches(kept) == ["vmap of 2: torch.func.vmap"]
    graph = torch2jax(scores, residuals="graph")
    jax.vmap(jax.grad(graph))(jnp.ones((4, 3)))
    assert batches(graph) == ["vmap of 4, derivatives: torch.func.vmap"]


def test_the_gradient_of_a_batch_and_forward_mode():
    f = torch2jax(scores)
    jax.grad(lambda x: jax.vmap(f)(x).sum())(X.reshape(4, -1))
    assert batches(f) == ["vmap of 4, differentiated: torch.func.vmap"]
    forward = torch2jax(scores)
    jax.jacfwd(forward)(jnp.ones(3))
    assert "vmap of 3, forward mode: torch.func.vmap" in batches(forward)


def test_a_batch_that_is_compiled_is_told():
    f = torch2jax(scores, compile=True)
    jax.vmap(f)(jnp.ones((4, 3)))
    assert batches(f) == ["vmap of 4: torch.func.vmap"]
    assert "compiled: vmap(scores)" in f.explain()
