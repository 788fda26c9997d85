"""What the first eager call, derivative or batch compiles is what later ones run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import torch
from common import compiles
from t2j_autodiff import Size, module2jax, torch2jax

x = jnp.arange(1.0, 4.0)


def test_a_call_is_compiled_once():
    f = torch2jax(lambda t, by=1.0: t.sin() * by)
    assert compiles(lambda: f(x)) == [1, 0, 0]
    assert compiles(lambda: f(x, by=2.0)) == [1, 0, 0]
    apply, variables = module2jax(torch.nn.Linear(3, 2))
    assert compiles(lambda: apply(variables, x)) == [1, 0, 0]


@pytest.mark.parametrize("transform", [jax.grad, jax.vmap, jax.jit])
def test_a_transformation_is_compiled_at_its_first_call_only(transform):
    runs = []
    f = torch2jax(lambda t: (runs.append(t.device.type), t.sin().sum())[1])
    argument = jnp.stack([x, x]) if transform is jax.vmap else x
    first, *rest = compiles(lambda: transform(f)(argument))
    assert first > 0
    assert rest == [0, 0]
    assert runs.count("meta") == 1


def test_derivatives_through_declared_containers():
    f = torch2jax(lambda t: {"b": t.sin(), "a": (t * 2,)}, output_shapes={"a": [Size(3)], "b": Size(3)})
    value, gradient = jax.value_and_grad(lambda a: f(a)["b"].sum() + 3 * f(a)["a"][0].sum())(x)
    assert jnp.allclose(value, jnp.sin(x).sum() + 6 * x.sum())
    assert jnp.allclose(gradient, jnp.cos(x) + 6)
    assert jnp.allclose(jax.vmap(f)(jnp.stack([x, x]))["b"][1], jnp.sin(x))
