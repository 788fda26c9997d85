"""Optimizers of optax, with a loss in torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from corpus_case import Case, JaxCase, JaxTask


def loss_torch(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.huber_loss((x @ w).tanh(), x[:, 0]) + 0.01 * (w**2).sum()


def loss_jnp(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.mean(optax.huber_loss(jnp.tanh(x @ w), x[:, 0])) + 0.01 * jnp.sum(w**2)


def trained(optimizer: Any) -> Any:
    """Five steps."""

    def program(f: Any) -> Any:
        def run(w: Any, x: Any) -> Any:
            def step(carry: Any, _: Any) -> Any:
                w, state = carry
                value, gradient = jax.value_and_grad(f)(w, x)
                extra = {"value": value, "grad": gradient, "value_fn": lambda w: f(w, x)}
                updates, state = optax.with_extra_args_support(optimizer).update(gradient, state, w, **extra)
                return (optax.apply_updates(w, updates), state), value

            (w, _), values = jax.lax.scan(step, (w, optimizer.init(w)), None, length=5)
            return w, values

        return run

    return program


def cases() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    args = rng.normal(size=3).astype(np.float32), rng.normal(size=(6, 3)).astype(np.float32)
    optimizers = {
        "adamw": optax.adamw(0.05),
        "lbfgs": optax.lbfgs(),
        "clipped sgd with momentum": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, 0.9)),
        "accumulated steps": optax.MultiSteps(optax.adam(0.05), 2).gradient_transformation(),
    }
    for name, optimizer in optimizers.items():
        task = lambda optimizer=optimizer: JaxTask(trained(optimizer), loss_torch, loss_jnp, args)
        yield JaxCase(name, task, tolerance=1e-3)
