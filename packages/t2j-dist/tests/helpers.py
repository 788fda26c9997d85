"""Meshes, comparisons, and the collectives of a compiled program."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")

X = jnp.asarray(np.random.default_rng(0).standard_normal((16, 3)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).standard_normal((3, 4)), jnp.float32)


def in_torch(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x @ w)


def in_jnp(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w)


def mesh_of(*kinds: str, **axes: int) -> jax.sharding.Mesh:
    """A mesh with axes of one kind, or each of its own."""
    axes = axes or {"data": 4, "model": 2}
    kinds = kinds if len(kinds) == len(axes) else kinds * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=tuple(getattr(AxisType, k) for k in kinds))


def use(mesh: jax.sharding.Mesh | None) -> Any:
    """The mesh as that of `jax.set_mesh`."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh)


def put(x: Any, mesh: jax.sharding.Mesh, *spec: Any) -> jax.Array:
    return jax.device_put(x, NamedSharding(mesh, P(*spec)))


def collectives(f: Any, *args: Any) -> dict[str, int]:
    """How many collectives of each kind the compiled program has, those it has none of left out."""
    text = jax.jit(f).lower(*args).compile().as_text()
    counts = {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES}
    return {name: count for name, count in counts.items() if count}


def agree(ours: Any, theirs: Any, rtol: float = 2e-4, atol: float = 1e-5) -> None:
    common.agree(ours, theirs, rtol, atol)


def squares(f: Any) -> Any:
    return lambda w, x: (f(x, w) ** 2).mean()


# Every transformation of a function of (x, w), as a function of (w, x).
TRANSFORMS = {
    "value_and_grad": lambda f: jax.value_and_grad(squares(f), (0, 1)),
    "jvp": lambda f: lambda w, x: jax.jvp(squares(f), (w, x), (2 * w, x)),
    "linearize": lambda f: lambda w, x: jax.linearize(squares(f), w, x)[1](2 * w, x),
    "jacrev": lambda f: jax.jacrev(lambda w, x: f(x, w).sum(0)),
    "jacfwd": lambda f: jax.jacfwd(lambda w, x: f(x, w).sum(0)),
    "hvp, forward over reverse": lambda f: lambda w, x: jax.jvp(jax.grad(squares(f)), (w, x), (2 * w, x))[1],
    "hvp, reverse over forward": lambda f: jax.grad(lambda w, x: jax.jvp(squares(f), (w, x), (2 * w, x))[1]),
    "hvp, reverse over reverse": lambda f: jax.grad(lambda w, x: (jax.grad(squares(f))(w, x) * w).sum()),
    "remat": lambda f: jax.grad(jax.checkpoint(squares(f))),
    "scan": lambda f: jax.grad(
        lambda w, x: jax.lax.scan(lambda c, s: (c + (f(x, w * s) ** 2).mean(), s), 0.0, jnp.arange(3.0))[0]
    ),
}
