"""Transformations of functions from a list of arrays to a list of arrays, which nest in any order."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Arrays = list[jax.Array]
Function = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Transformation:
    """One transformation, and how many derivatives it takes."""

    apply: Callable[[Function, random.Random], Function]
    order: int = 0
    needs_real: bool = False


def is_inexact(x: Any) -> bool:
    """Whether an array has derivatives."""
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def of_inexact(h: Function, xs: Arrays) -> tuple[Function, Arrays]:
    """The function of the arrays that have derivatives, and its results that have; and these arrays."""

    def of_moving(moving: Arrays) -> Arrays:
        rest = iter(moving)
        return [y for y in h([next(rest) if is_inexact(x) else x for x in xs]) if is_inexact(y)]

    return of_moving, [x for x in xs if is_inexact(x)]


def weight(ys: Arrays) -> jax.Array:
    """A number that depends on every element of all results, in each differently."""
    total = jnp.float32(0)
    for k, y in enumerate(ys):
        w = jnp.cos(jnp.arange(y.size, dtype=jnp.float32) + k).reshape(y.shape)
        size = jnp.real(y * jnp.conj(y)) + jnp.real(y) if jnp.iscomplexobj(y) else y * y * y.dtype.type(0.5) + y
        total += (w * size.astype(jnp.float32)).sum()
    return total


def direction(x: jax.Array, k: int) -> jax.Array:
    """A tangent or cotangent."""
    values = jnp.sin(1.0 + k + jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    return (values + 1j * values[::-1] if jnp.iscomplexobj(x) and x.ndim else values).astype(x.dtype)


def directions(xs: Sequence[jax.Array]) -> Arrays:
    """A direction for each array."""
    return [direction(x, k) for k, x in enumerate(xs)]


# --- derivatives ------------------------------------------------------------------------------------------------------


def by_grad(h: Function, r: random.Random) -> Function:
    """The gradient of a weighted sum."""

    def run(xs: Arrays) -> Arrays:
        of_moving, moving = of_inexact(h, xs)
        value, gradient = jax.value_and_grad(lambda moving: weight(of_moving(moving)))(moving)
        return [value, *gradient]

    return run


def by_vjp(h: Function, r: random.Random) -> Function:
    """Two pullbacks, the later one first, and one of them once more."""

    def run(xs: Arrays) -> Arrays:
        of_moving, moving = of_inexact(h, xs)
        y, pull = jax.vjp(of_moving, moving)
        other, pull_other = jax.vjp(of_moving, [x * x.dtype.type(0.5) for x in moving])
        cotangents = directions(y)
        found = [pull_other(directions(other)), pull(cotangents), pull(cotangents)]
        return [*y, *jax.tree.leaves(found)]

    return run


def by_jvp(h: Function, r: random.Random) -> Function:
    """The pushforward, of one argument or all."""
    is_one = r.random() < 0.3

    def run(xs: Arrays) -> Arrays:
        of_moving, moving = of_inexact(h, xs)
        tangents = directions(moving)
        if is_one:
            tangents = [t if k == 0 else jnp.zeros_like(t) for k, t in enumerate(tangents)]
        y, dy = jax.jvp(of_moving, (moving,), (tangents,))
        return [*y, *dy]

    return run


def by_linearize(h: Function, r: random.Random) -> Function:
    """Two pushforwards of one linearization."""

    def run(xs: Arrays) -> Arrays:
        of_moving, moving = of_inexact(h, xs)
        y, push = jax.linearize(of_moving, moving)
        tangents = directions(moving)
        return [*y, *push(tangents), *push([t * t.dtype.type(-2) for t in tangents])]

    return run


def by_jacobian(kind: Callable[..., Any], h: Function, r: random.Random) -> Function:
    """A Jacobian of all results."""

    def run(xs: Arrays) -> Arrays:
        of_moving, moving = of_inexact(h, xs)
        return jax.tree.leaves(kind(of_moving)(moving))

    return run


# --- batches ----------------------------------------------------------------------------------------------------------


def by_vmap(h: Function, r: random.Random) -> Function:
    """A batch along random axes of some arrays."""
    size, out_axis = r.choice((2, 3, 1)), r.choice((0, -1))
    places = [r.randrange(4) for _ in range(8)]

    def run(xs: Arrays) -> Arrays:
        axes = [batch_axis(x, places[k % 8]) for k, x in enumerate(xs)]
        if all(axis is None for axis in axes):
            axes[0] = 0
        batch = [x if axis is None else stacked(x, size, axis) for x, axis in zip(xs, axes, strict=True)]
        return jax.vmap(h, in_axes=(axes,), out_axes=out_axis)(batch)

    return run


def batch_axis(x: jax.Array, place: int) -> int | None:
    """A place for the batch axis of an array, or none."""
    return None if place == 3 else place % (x.ndim + 1)


def stacked(x: jax.Array, size: int, axis: int) -> jax.Array:
    """Different examples."""
    if x.dtype == jnp.bool_:
        examples = [x ^ (k % 2 == 1) for k in range(size)]
    else:
        examples = [x * np.asarray((1, -2, 0.5)[k] if is_inexact(x) else k + 1).astype(x.dtype) for k in range(size)]
    return jnp.stack(examples, axis)


# --- control flow -----------------------------------------------------------------------------------------------------


def by_scan(h: Function, r: random.Random) -> Function:
    """Two steps of a loop whose arguments shrink."""

    def run(xs: Arrays) -> Arrays:
        def step(carry: Arrays, _: None) -> tuple[Arrays, Arrays]:
            return [x * x.dtype.type(0.5) if is_inexact(x) else x for x in carry], h(carry)

        return jax.lax.scan(step, list(xs), None, length=2)[1]

    return run


def by_cond(h: Function, r: random.Random) -> Function:
    """One of two branches, by the data."""

    def run(xs: Arrays) -> Arrays:
        def other(xs: Arrays) -> Arrays:
            return h([x * x.dtype.type(-1) if is_inexact(x) else x for x in xs])

        is_first = sum(jnp.real(x).astype(jnp.float32).sum() for x in xs) > 0
        return jax.lax.cond(is_first, h, other, list(xs))

    return run


TRANSFORMATIONS = {
    "jit": Transformation(lambda h, r: jax.jit(h)),
    "grad": Transformation(by_grad, 1),
    "vmap": Transformation(by_vmap),
    "vjp": Transformation(by_vjp, 1),
    "jvp": Transformation(by_jvp, 1),
    "linearize": Transformation(by_linearize, 1),
    "checkpoint": Transformation(lambda h, r: jax.checkpoint(h)),
    "scan": Transformation(by_scan),
    "cond": Transformation(by_cond),
    "jacfwd": Transformation(functools.partial(by_jacobian, jax.jacfwd), 1, needs_real=True),
    "jacrev": Transformation(functools.partial(by_jacobian, jax.jacrev), 1, needs_real=True),
}


def draw_names(r: random.Random, *, most: int = 3, most_derivatives: int = 2, are_real: bool = True) -> list[str]:
    """Which transformations a function goes through, the innermost first."""
    names: list[str] = []
    for _ in range(r.randint(1, most)):
        left = most_derivatives - sum(TRANSFORMATIONS[name].order for name in names)
        allowed = [
            name
            for name, one in TRANSFORMATIONS.items()
            if one.order <= left and (are_real or not one.needs_real) and name not in names[-1:]
        ]
        names.append(r.choice(allowed))
    return names


def transformed(h: Function, names: Sequence[str], seed: int) -> Function:
    """A function through some transformations. The same seed gives the same batch axes and directions."""
    r = random.Random(seed)
    for name in names:
        h = TRANSFORMATIONS[name].apply(h, r)
    return h
