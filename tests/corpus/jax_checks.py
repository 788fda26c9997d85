"""The checks of a task in JAX: a library that calls a torch function, against the same function in jnp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from agreement import NotCounted, compare, inexact, is_inexact, leaves_of, native
from corpus_case import JaxCase
from t2j_autodiff import torch2jax
from watch import Watch

SHRINK = 0.97


class JaxChecks:
    """One case. Checks that the library refuses with the function in jnp too are not counted."""

    def __init__(self, case: JaxCase, watch: Watch) -> None:
        self.watch, self.tolerance = watch, case.tolerance
        task = case.make()
        with watch.as_library():
            self.library = task.program(torch2jax(task.torch_fn, depth=None))  # a solver may differentiate too
        self.judge = task.program(task.jnp_fn)
        self.args = tuple(jax.tree.map(jnp.asarray, arg) for arg in task.args)

    def both(self, transformed: Callable[[Callable[..., Any]], Callable[..., Any]], *args: Any) -> None:
        """Compare a transformation of the program with that of the judge."""
        with self.watch.as_judge():
            expected = native(lambda: jax.block_until_ready(jax.jit(transformed(self.judge))(*args)))
        with self.watch.as_library():
            got = jax.block_until_ready(jax.jit(transformed(self.library))(*args))
        compare(leaves_of(got), leaves_of(expected), self.tolerance)

    def forward(self) -> None:
        """The values."""
        self.both(lambda f: f, *self.args)

    def second_call(self) -> None:
        """Another call, with other arguments."""
        self.both(lambda f: f, *jax.tree.map(_shrunk, self.args))

    def vjp(self) -> None:
        """The gradient of a weighted sum of the outputs."""
        self.both(lambda f: lambda *args: jax.grad(lambda m: _loss(f(*_merged(m, args))))(_moving(args)), *self.args)

    def vmap(self) -> None:
        """A batch of arguments."""
        self.both(jax.vmap, *self._batch())

    def vmap_vjp(self) -> None:
        """A batch of gradients."""
        self.both(
            lambda f: jax.vmap(lambda *args: jax.grad(lambda m: _loss(f(*_merged(m, args))))(_moving(args))),
            *self._batch(),
        )

    def jvp(self) -> None:
        """Forward mode."""

        def push(f: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args: jax.jvp(lambda m: _loss(f(*_merged(m, args))), (_moving(args),), (_moving(args),))

        self.both(push, *self.args)

    def hvp(self) -> None:
        """The product of a Hessian with a vector."""

        def product(f: Callable[..., Any]) -> Callable[..., Any]:
            def of(*args: Any) -> Any:
                gradient = jax.grad(lambda m: _loss(f(*_merged(m, args))))
                return jax.jvp(gradient, (_moving(args),), (_moving(args),))[1]

            return of

        self.both(product, *self.args)

    def unchanged(self) -> None:
        """The arguments are immutable arrays, which the comparisons above would show."""
        raise NotCounted("no module, and the arguments are JAX's own")

    def quiet(self) -> None:
        """No warning and no output but those with the function in jnp."""
        self.watch.check()

    def _batch(self) -> Any:
        return jax.tree.map(lambda a: jnp.stack([a, _shrunk(a)]), self.args)


def _shrunk(a: Any) -> Any:
    return (a * SHRINK).astype(a.dtype) if is_inexact(a) else a


def _moving(args: Any) -> list[Any]:
    moving = inexact(jax.tree.leaves(args))
    if not moving:
        raise NotCounted("nothing that can be differentiated")
    return moving


def _merged(moving: list[Any], args: Any) -> Any:
    leaves, tree = jax.tree.flatten(args)
    rest = iter(moving)
    return jax.tree.unflatten(tree, [next(rest) if is_inexact(leaf) else leaf for leaf in leaves])


def _loss(outputs: Any) -> Any:
    """A sum in which every element counts differently."""
    ys = inexact(leaves_of(outputs))
    if not ys:
        raise NotCounted("nothing that can be differentiated")
    return sum(jnp.sum(jnp.real(y) * jnp.cos(jnp.arange(y.size, dtype=jnp.real(y).dtype)).reshape(y.shape)) for y in ys)
