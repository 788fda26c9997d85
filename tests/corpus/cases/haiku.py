"""Modules of haiku that call a torch function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import torch
from corpus_case import Case, JaxCase, JaxTask


def cell_torch(x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x + h) * torch.sigmoid(x - h)


def cell_jnp(x: jax.Array, h: jax.Array) -> jax.Array:
    return jnp.tanh(x + h) * jax.nn.sigmoid(x - h)


def transformed(net: Any) -> Any:
    def program(f: Any) -> Any:
        def run(x: Any) -> Any:
            pair = hk.transform_with_state(lambda x: net(f, x))
            params, state = pair.init(jax.random.key(0), x)
            return pair.apply(params, state, jax.random.key(1), x)

        return run

    return program


def recurrent(f: Any, x: Any) -> Any:
    """A scan over time of a cell in torch."""
    step = lambda h, x: ((h := f(x, h)), h)
    return hk.scan(step, jnp.zeros(3), hk.Linear(3)(x))


def normalised(f: Any, x: Any) -> Any:
    h = hk.BatchNorm(True, True, 0.9)(hk.Linear(3)(x), is_training=True)
    return hk.dropout(hk.next_rng_key(), 0.5, f(h, x))


def cases() -> Iterator[Case]:
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for name, net in {"scan over a cell": recurrent, "batch norm and dropout": normalised}.items():
        task = lambda net=net: JaxTask(transformed(net), cell_torch, cell_jnp, (x,))
        yield JaxCase(name, task, tolerance=1e-3)
