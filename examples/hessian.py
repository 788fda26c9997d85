"""Curvature of a PyTorch model, from JAX: Hessian, Hessian-vector products, per-example gradients.

The loss of a small classifier is a torch function; JAX takes its derivatives, batches them, and runs the power
iteration in one jitted loop. Everything is compared with `torch.func`.

    python examples/hessian.py
"""

from __future__ import annotations

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
from t2j_autodiff import torch2jax

SIZES = (2, 8, 2)
POINTS, STEPS = 200, 60


def spirals() -> tuple[torch.Tensor, torch.Tensor]:
    """Two spirals: points f32[POINTS, 2] and their class i64[POINTS]."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(POINTS) % 2
    radius = torch.linspace(0.1, 1, POINTS)
    angle = 6 * radius + torch.pi * label
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return points + 0.02 * torch.randn(POINTS, 2, generator=generator), label


def unpacked(flat: torch.Tensor) -> list[torch.Tensor]:
    """Weights and biases from one vector of parameters."""
    shapes = [shape for n, m in itertools.pairwise(SIZES) for shape in ((n, m), (m,))]
    parts = flat.split([int(np.prod(shape)) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def loss(flat: torch.Tensor, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Cross entropy of a perceptron with one hidden layer, with a little weight decay."""
    w1, b1, w2, b2 = unpacked(flat)
    logits = torch.tanh(x @ w1 + b1) @ w2 + b2
    return torch.nn.functional.cross_entropy(logits, label) + 1e-3 * flat.square().sum()


def main() -> None:
    """Train a little, then look at the curvature."""
    x, label = spirals()
    count = sum(n * m + m for n, m in itertools.pairwise(SIZES))
    start = 0.5 * torch.randn(count, generator=torch.Generator().manual_seed(1))
    f = torch2jax(loss, start, x, label, nondiff_argnums=(1, 2))  # the examples tell that labels are int64
    xj, lj = jnp.asarray(x.numpy()), jnp.asarray(label.numpy().astype(np.int32))

    @jax.jit
    def train(p: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 200, lambda _, p: p - 0.5 * jax.grad(f)(p, xj, lj), p)

    @jax.jit
    def product(p: jax.Array, v: jax.Array) -> jax.Array:
        return jax.jvp(lambda p: jax.grad(f)(p, xj, lj), (p,), (v,))[1]

    @jax.jit
    def largest_eigenvalue(p: jax.Array) -> jax.Array:
        def step(_: int, v: jax.Array) -> jax.Array:
            v = product(p, v)
            return v / jnp.linalg.norm(v)

        v = jax.lax.fori_loop(0, STEPS, step, jnp.ones(count) / count**0.5)
        return jnp.vdot(v, product(p, v))

    p = train(jnp.asarray(start.numpy()))
    native = torch.from_numpy(np.array(p))
    hessian = jax.jit(jax.hessian(f))(p, xj, lj)
    expected = torch.func.hessian(loss)(native, x, label).numpy()
    v = jnp.cos(jnp.arange(count, dtype=jnp.float32))
    each = jax.jit(jax.vmap(jax.grad(f), (None, 0, 0)))(p, xj[:, None], lj[:, None])
    each_native = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(native, x[:, None], label[:, None]).numpy()
    top, exact = float(largest_eigenvalue(p)), float(np.abs(np.linalg.eigvalsh(expected)).max())
    rows = [
        ("loss before training", float(f(jnp.asarray(start.numpy()), xj, lj)), ""),
        ("loss after training", float(f(p, xj, lj)), ""),
        (f"Hessian {hessian.shape}, largest entry", float(np.abs(expected).max()), np.abs(hessian - expected).max()),
        (
            "Hessian-vector product, norm",
            float(jnp.linalg.norm(product(p, v))),
            np.abs(product(p, v) - expected @ v).max(),
        ),
        (f"largest eigenvalue, {STEPS} steps", top, abs(top - exact)),
        (f"per-example gradients {each.shape}, norm", float(jnp.linalg.norm(each)), np.abs(each - each_native).max()),
    ]
    sys.stdout.write(f"{'':44}{'value':>12}{'difference from torch':>24}\n")
    for name, value, difference in rows:
        shown = f"{float(difference):.1e}" if difference != "" else ""
        sys.stdout.write(f"{name:44}{value:12.4f}{shown:>24}\n")


if __name__ == "__main__":
    main()
