"""Operations that torch and `jnp` both have: the steps of random programs.

Each takes arrays of any shape and dtype, with no elements too, and returns one whose values stay small, so that results
of a few steps can be compared. Where two arrays do not fit each other, the second one becomes a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import torch

Array = Any
"""A tensor or a JAX array: most of these functions are written once for both."""


@dataclass(frozen=True)
class Operation:
    """One function in two libraries.

    `needs_real` is true where complex numbers have no such function, `is_once` where torch has no forward mode, and
    thus no forward mode over forward mode.
    """

    torch: Callable[..., Array]
    jax: Callable[..., Array]
    arity: int = 1
    needs_real: bool = False
    is_once: bool = False

    def __call__(self, *arrays: Array) -> Array:
        """Run the function of the library that the arrays belong to."""
        arrays = tuple(map(as_inexact, arrays))
        if self.needs_real:
            arrays = tuple(map(as_real, arrays))
        function = self.torch if isinstance(arrays[0], torch.Tensor) else self.jax
        return function(*arrays)


def as_inexact(x: Array) -> Array:
    """An array of numbers that have derivatives."""
    if isinstance(x, torch.Tensor):
        return x if x.is_floating_point() or x.is_complex() else x.to(torch.float32)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)


def as_real(x: Array) -> Array:
    """The real part of an array."""
    is_complex = x.is_complex() if isinstance(x, torch.Tensor) else jnp.iscomplexobj(x)
    return x.real if is_complex else x


def both(function: Callable[..., Array], arity: int = 1, *, needs_real: bool = False) -> Operation:
    """A function that reads the same in both libraries."""
    return Operation(function, function, arity, needs_real)


def fitted(x: Array, y: Array) -> Array:
    """The second array with the dtype of the first, and its shape or none."""
    if isinstance(x, torch.Tensor):
        y = y if x.is_complex() else as_real(y)
        y = y.to(x.dtype)
    else:
        y = y if jnp.iscomplexobj(x) else as_real(y)
        y = y.astype(x.dtype)
    return y if y.shape == x.shape else y.sum()


def with_one(x: Array) -> Array:
    """All elements in a row, and a one: never without elements."""
    flat = x.reshape(-1)
    one = flat.sum() * 0 + 1
    return torch.cat([flat, one[None]]) if isinstance(x, torch.Tensor) else jnp.concatenate([flat, one[None]])


def written(x: torch.Tensor) -> torch.Tensor:
    """`1 - 2 x`, and the first element once more, in place on a tensor of its own."""
    y = x.clone(memory_format=torch.contiguous_format)  # of a transposed tensor there is no flat view
    y.mul_(-2).add_(1)
    y.view(-1)[:1] += y.view(-1)[:1]
    return y


def written_by_jax(x: jax.Array) -> jax.Array:
    """As `written`, without writing."""
    y = (1 - 2 * x).reshape(-1)
    return jnp.concatenate([2 * y[:1], y[1:]]).reshape(x.shape)


def distances(x: torch.Tensor) -> torch.Tensor:
    """Distances of the elements, as points on a line, from three others."""
    points = torch.tensor([[-3.0], [2.5], [4.0]], dtype=torch.float32)
    return torch.cdist(x.reshape(-1, 1).to(torch.float32), points).to(x.dtype)


def distances_by_jax(x: jax.Array) -> jax.Array:
    """As `distances`."""
    points = jnp.asarray([[-3.0, 2.5, 4.0]], jnp.float32)
    return jnp.abs(x.reshape(-1, 1).astype(jnp.float32) - points).astype(x.dtype)


def looked_up(x: torch.Tensor) -> torch.Tensor:
    """Rows of a small table of the elements, one row twice."""
    table = with_one(x)[:, None] * torch.tensor([1.0, -0.5], dtype=torch.float32).to(x.dtype)
    return torch.nn.functional.embedding(torch.tensor([0, table.shape[0] - 1, 0]), table)


def looked_up_by_jax(x: jax.Array) -> jax.Array:
    """As `looked_up`."""
    table = with_one(x)[:, None] * jnp.asarray([1.0, -0.5], jnp.float32).astype(x.dtype)
    return table[jnp.asarray([0, table.shape[0] - 1, 0])]


def normalised(x: jax.Array) -> jax.Array:
    """`torch.nn.functional.layer_norm` over all elements."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    variance = ((y - y.mean()) ** 2).mean()
    return ((y - y.mean()) / jnp.sqrt(variance + 1e-1)).astype(x.dtype)


def weight_normalised(x: torch.Tensor) -> torch.Tensor:
    """`torch.nn.utils.weight_norm`: all elements as one direction, and their sum as its length."""
    direction = with_one(x)[None]
    return torch._weight_norm(direction, direction.sum(1, keepdim=True), 0)


def weight_normalised_by_jax(x: jax.Array) -> jax.Array:
    """As `weight_normalised`."""
    direction = with_one(x)[None]
    wide = direction.astype(jnp.promote_types(x.dtype, jnp.float32))
    length = direction.sum(1, keepdims=True).astype(wide.dtype)
    return (wide * length / jnp.sqrt((wide * wide).sum())).astype(x.dtype)


class Doubled(torch.autograd.Function):
    """A function of the user's own, whose derivative he writes himself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        """Twice the argument."""
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Nothing to save."""

    @staticmethod
    def backward(ctx, ct):
        """The pullback."""
        return ct * 2

    @staticmethod
    def jvp(ctx, dx):
        """The pushforward."""
        return dx * 2


OPERATIONS = {
    # one by one
    "sin": Operation(torch.sin, jnp.sin),
    "tanh": Operation(torch.tanh, jnp.tanh, needs_real=True),
    "sigmoid": Operation(torch.sigmoid, jax.nn.sigmoid, needs_real=True),
    "softplus": Operation(torch.nn.functional.softplus, jax.nn.softplus, needs_real=True),
    "square": both(lambda x: x * x * 0.5),
    "affine": both(lambda x: 1 - x * 0.5),
    "root": Operation(lambda x: torch.sqrt(x * x + 1), lambda x: jnp.sqrt(x * x + 1), needs_real=True),
    "where": Operation(
        lambda x: torch.where(x > 0.1, x, x * 0.1), lambda x: jnp.where(x > 0.1, x, x * 0.1), needs_real=True
    ),
    "written": Operation(written, written_by_jax),
    "doubled": Operation(Doubled.apply, lambda x: 2 * x, needs_real=True),
    "conjugate": Operation(lambda x: x.conj() * 1, jnp.conj),
    # of two
    "add": both(lambda x, y: x + fitted(x, y), 2),
    "subtract": both(lambda x, y: x - fitted(x, y), 2),
    "multiply": both(lambda x, y: x * fitted(x, y), 2),
    "outer": both(lambda x, y: x.reshape(-1, 1)[:3] @ fitted(x, y).reshape(1, -1)[:, :3], 2),
    # of all elements
    "sum": both(lambda x: x.sum()),
    "softmax": Operation(
        lambda x: torch.softmax(with_one(x), 0), lambda x: jax.nn.softmax(with_one(x), 0), needs_real=True
    ),
    "largest": both(lambda x: with_one(x).max(), needs_real=True),
    "sorted": Operation(lambda x: torch.sort(with_one(x)).values, lambda x: jnp.sort(with_one(x)), needs_real=True),
    "running sum": Operation(lambda x: torch.cumsum(with_one(x), 0), lambda x: jnp.cumsum(with_one(x), 0)),
    "layer norm": Operation(
        lambda x: torch.nn.functional.layer_norm(with_one(x), with_one(x).shape, eps=1e-1),
        lambda x: normalised(with_one(x)),
        needs_real=True,
    ),
    "weight norm": Operation(weight_normalised, weight_normalised_by_jax, needs_real=True),
    "distances": Operation(distances, distances_by_jax, needs_real=True, is_once=True),
    "looked up": Operation(looked_up, looked_up_by_jax, needs_real=True),
    # of shapes
    "flat": both(lambda x: x.reshape(-1)),
    "reversed axes": Operation(lambda x: x.permute(tuple(range(x.ndim))[::-1]), jnp.transpose),
    "first": both(lambda x: x[0] if x.ndim and x.shape[0] else x),
    "one more axis": both(lambda x: x[..., None]),
    "repeated": Operation(lambda x: x.expand(2, *x.shape), lambda x: jnp.broadcast_to(x, (2, *x.shape))),
    "stacked": Operation(lambda x: torch.stack([x, x * 2], -1), lambda x: jnp.stack([x, x * 2], -1)),
    "detached": Operation(lambda x: x.detach() + x, lambda x: jax.lax.stop_gradient(x) + x),
}
