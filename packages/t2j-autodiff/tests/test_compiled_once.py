"""What the first eager call, derivative or batch compiles is what later ones run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import torch
from t2j_autodiff import Size, module2jax, torch2jax

x = jnp.arange(1.0, 4.0)


@pytest.fixture(scope="module")
def compiled():
    """What XLA has compiled since it was last cleared."""
    events: list[str] = []

    def note(event: str, _seconds: float, **_: object) -> None:
        if "backend_compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    return events


def counts_of(call, compiled) -> list[int]:
    counts = []
    for _ in range(3):
        compiled.clear()
        call()
        counts.append(len(compiled))
    return counts


def test_a_call_is_compiled_once(compiled):
    f = torch2jax(lambda t, by=1.0: t.sin() * by)
    assert counts_of(lambda: f(x), compiled) == [1, 0, 0]
    assert counts_of(lambda: f(x, by=2.0), compiled) == [1, 0, 0]
    apply, variables = module2jax(torch.nn.Linear(3, 2))
    assert counts_of(lambda: apply(variables, x), compiled) == [1, 0, 0]


@pytest.mark.parametrize("transform", [jax.grad, jax.vmap, jax.jit])
def test_a_transformation_is_compiled_at_its_first_call_only(transform, compiled):
    runs = []
    f = torch2jax(lambda t: (runs.append(t.device.type), t.sin().sum())[1])
    argument = jnp.stack([x, x]) if transform is jax.vmap else x
    first, *rest = counts_of(lambda: transform(f)(argument), compiled)
    assert first > 0
    assert rest == [0, 0]
    assert runs.count("meta") == 1


def test_derivatives_through_declared_containers():
    f = torch2jax(lambda t: {"b": t.sin(), "a": (t * 2,)}, output_shapes={"a": [Size(3)], "b": Size(3)})
    value, gradient = jax.value_and_grad(lambda a: f(a)["b"].sum() + 3 * f(a)["a"][0].sum())(x)
    assert jnp.allclose(value, jnp.sin(x).sum() + 6 * x.sum())
    assert jnp.allclose(gradient, jnp.cos(x) + 6)
    assert jnp.allclose(jax.vmap(f)(jnp.stack([x, x]))["b"][1], jnp.sin(x))
