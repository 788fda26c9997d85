"""One sample of an operator or a module, and what is checked of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import torch
from judge import (
    TOLERANCE,
    NotCounted,
    Tensors,
    compare,
    compare_products,
    computed_in,
    is_inexact,
    leaves_of,
    native,
    noise,
    products,
    twin,
)
from t2j_autodiff import t2j, torch2jax

CONTRADICTION = 0.01  # larger than the rounding error of any dtype
SHRINK = 0.97  # the factor of the second example; a scaled matrix stays symmetric, positive and of full rank


@dataclass(frozen=True)
class How:
    """How samples are run."""

    dtype: str
    samples: int
    run: Callable[..., Any]  # `jax.jit`, or the identity
    device: str = "cpu"
    compiles: bool = False

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype]


@dataclass
class Case:
    """One sample, as a function of its tensors. Native results are computed once."""

    fn: Callable[..., Any]
    tensors: Tensors
    how: How
    unfair: str = ""  # why native torch has no result to compare with, if that is known ahead

    @property
    def tolerance(self) -> float:
        return self.how.tolerance

    @property
    def run(self) -> Callable[..., Any]:
        return self.how.run

    # --- results of torch ---

    def instance(self, tensors: Tensors) -> tuple[Tensors, Callable[[], Tensors]]:
        """Copies of the tensors, and the call of native torch on these copies."""
        x = [twin(t) for t in tensors]
        return x, lambda: leaves_of(self.fn(*x))

    def values(self, tensors: Tensors) -> Tensors:
        """The outputs."""
        with torch.no_grad():
            return self.instance(tensors)[1]()

    @cached_property
    def expected(self) -> Tensors:
        return native(lambda: self.values(self.tensors))

    @property
    def candidates(self) -> list[int]:
        """The inputs that may have a derivative."""
        return [i for i, t in enumerate(self.tensors) if is_inexact(t)]

    @cached_property
    def moving(self) -> list[int]:
        """The inputs that torch can differentiate."""
        if not self.candidates:
            raise NotCounted("no input that can be differentiated")
        if not self.smooth_outputs:
            raise NotCounted("no output that can be differentiated")
        if self._has_vjp(self.candidates):
            return self.candidates
        some = [i for i in self.candidates if len(self.candidates) > 1 and self._has_vjp([i])]
        return some if some and self._has_vjp(some) else self.candidates

    def _has_vjp(self, ins: list[int]) -> bool:
        try:
            self.native_vjp(self.tensors, ins, noise(self.smooth_outputs, 1))
        except Exception:
            return False
        return True

    @cached_property
    def smooth_outputs(self) -> Tensors:
        return [y for y in self.expected if is_inexact(y)]

    def differentiable(self, tensors: Tensors, ins: list[int]) -> tuple[Tensors, Tensors]:
        """The inputs `ins`, and the outputs that may depend on them, with their autograd graph."""
        x, call = self.instance(tensors)
        for i in ins:
            x[i].requires_grad_()
        return [x[i] for i in ins], [t for t in call() if is_inexact(t)]

    def native_vjp(self, tensors: Tensors, ins: list[int], cotangents: Tensors) -> Tensors:
        """The pullback in JAX's convention: torch's is its conjugate."""
        x, y = self.differentiable(tensors, ins)
        grads = pulled_back(y, x, [ct.conj() for ct in cotangents])
        return [g.conj() for g in grads]

    def native_jvp(self, ins: list[int], tangents: Tensors) -> Tensors:
        """The pushforward, in forward mode. It raises if an output has no tangent.

        `scatter_reduce` with "prod" and a chunked `linear_cross_entropy` lose the tangent without an error (torch 2.13,
        `scatter_reduce_jvp`), and the result would be zero.
        """

        def moved(*moving: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = [twin(t) for t in self.tensors]
            for i, t in zip(ins, moving, strict=True):
                x[i] = t
            return tuple(t for t in leaves_of(self.fn(*x)) if is_inexact(t))

        primals = tuple(twin(self.tensors[i]) for i in ins)
        return list(torch.func.jvp(moved, primals, tuple(tangents), strict=True)[1])

    # --- a batch of two examples ---

    @property
    def axes(self) -> list[int | None]:
        """The batch axis of each tensor, or None where the examples share it."""
        return [0] * len(self.tensors)

    def batch(self, works: Callable[[Tensors], Any]) -> list[Tensors]:
        """Two examples: the sample and a scaled one, or the sample twice if torch refuses the scaled one."""
        pairs = zip(self.tensors, self.axes, strict=True)
        other = [shrunk(t) if is_inexact(t) and axis is not None else t for t, axis in pairs]
        try:
            works(other)
            shapes = [t.shape for t in self.values(other)]
        except Exception:
            shapes = []
        return [self.tensors, other if shapes == [t.shape for t in self.expected] else self.tensors]

    def stacked(self, examples: Sequence[Tensors]) -> list[Any]:
        """The arrays of a batch."""
        columns = zip(*examples, strict=True)
        pairs = zip(columns, self.axes, strict=True)
        return [t2j(twin(column[0]) if axis is None else torch.stack(column)) for column, axis in pairs]

    # --- results of the library ---

    @cached_property
    def wrapped(self) -> Callable[..., Any]:
        """The library's function. The examples declare 64-bit integers, which JAX does not have while x64 is off."""
        return torch2jax(self.fn, *self.tensors, compile=self.how.compiles)

    @property
    def not_compiled(self) -> str:
        """Why the library's function, or something derived from it, was not compiled."""
        if not self.how.compiles or "wrapped" not in vars(self):
            return ""
        lines = [line.strip() for line in self.wrapped.explain().splitlines()]
        reasons = (line.removeprefix("not compiled: ") for line in lines if line.startswith("not compiled: "))
        return "; ".join(re.sub(r", in line \d+ of .*", "", reason) for reason in reasons)  # it is in these files

    @cached_property
    def arrays(self) -> list[Any]:
        return [t2j(twin(t)) for t in self.tensors]

    def outputs(self, *arrays: Any) -> list[Any]:
        """The arrays that the library's function returns."""
        return [leaf for leaf in jax.tree.leaves(self.wrapped(*arrays)) if isinstance(leaf, jax.Array)]

    def restricted(self, arrays: Sequence[Any], ins: list[int]) -> Callable[..., list[Any]]:
        """The function from the inputs `ins` to the outputs that have derivatives."""

        def g(*moving: Any) -> list[Any]:
            x = list(arrays)
            for i, value in zip(ins, moving, strict=True):
                x[i] = value
            return [y for y in self.outputs(*x) if jnp.issubdtype(y.dtype, jnp.inexact)]

        return g

    def pull(self, arrays: list[Any], cotangents: list[Any]) -> Any:
        moving = [arrays[i] for i in self.moving]
        return jax.vjp(self.restricted(arrays, self.moving), *moving)[1](cotangents)

    def push(self, arrays: list[Any], tangents: list[Any]) -> Any:
        moving = [arrays[i] for i in self.moving]
        return jax.jvp(self.restricted(arrays, self.moving), moving, tangents)[1]

    # --- checks ---

    def forward(self) -> None:
        expected = self.expected
        compare(self.run(self.outputs)(*self.arrays), expected, self.tolerance)

    def vjp(self) -> None:
        cotangents = noise(self.smooth_outputs, 2)
        expected = native(lambda: self.native_vjp(self.tensors, self.moving, cotangents))
        compare(self.run(self.pull)(self.arrays, list(map(t2j, cotangents))), expected, self.tolerance)

    def jvp(self) -> None:
        tangents = noise([self.tensors[i] for i in self.moving], 3)
        cotangents = noise(self.smooth_outputs, 4)
        expected: Tensors | None = None
        try:
            expected = self.native_jvp(self.moving, tangents)
        except Exception:  # no forward mode, or no tangent; the transpose is checked instead
            grads = native(lambda: self.native_vjp(self.tensors, self.moving, cotangents))
        else:
            if self.is_contradicted(expected, cotangents, tangents):
                grads, expected = self.native_vjp(self.tensors, self.moving, cotangents), None
        got = self.run(self.push)(self.arrays, list(map(t2j, tangents)))
        if expected is None:
            compare_products(got, cotangents, grads, tangents, self.tolerance)
        else:
            compare(got, expected, self.tolerance)

    def is_contradicted(self, pushed: Tensors, cotangents: Tensors, tangents: Tensors) -> bool:
        """Whether torch's own two modes differ. Reverse mode counts as correct.

        They differ for `max_unpool2d` with a repeated index, `triangular_solve` and `linalg.cholesky` (torch 2.13).
        """
        try:
            grads = self.native_vjp(self.tensors, self.moving, cotangents)
        except Exception:
            return False
        left = torch.cat([products(ct, p.clone()) for ct, p in zip(cotangents, pushed, strict=True)])
        right = torch.cat([products(g, t) for g, t in zip(grads, tangents, strict=True)])
        return float((left.sum() - right.sum()).abs()) > CONTRADICTION * float(left.norm() + right.norm())

    def vmap(self) -> None:
        examples = self.batch(lambda x: None)
        expected = native(lambda: [self.values(x) for x in examples])
        got = self.run(jax.vmap(self.outputs, in_axes=tuple(self.axes)))(*self.stacked(examples))
        compare(got, rows(expected), self.tolerance)

    def vmap_vjp(self) -> None:
        cotangents = [noise(self.smooth_outputs, seed) for seed in (5, 6)]
        examples = self.batch(lambda x: self.native_vjp(x, self.moving, cotangents[1]))
        expected = native(
            lambda: [self.native_vjp(x, self.moving, ct) for x, ct in zip(examples, cotangents, strict=True)]
        )
        pull = jax.vmap(self.pull, in_axes=(self.axes, 0))
        got = self.run(pull)(self.stacked(examples), list(map(t2j, rows(cotangents))))
        compare(got, rows(expected), self.tolerance)


def shrunk(t: torch.Tensor) -> torch.Tensor:
    """Slightly smaller numbers."""
    return (t.to(computed_in(t.dtype)) * SHRINK).to(t.dtype)


def rows(examples: Sequence[Tensors]) -> Tensors:
    """The tensors of a batch."""
    return [torch.stack(column) for column in zip(*examples, strict=True)]


def pulled_back(y: Tensors, x: Tensors, cotangents: Tensors, **how: bool) -> Tensors:
    """The gradients of `y` by torch, with zeros where an output does not depend on an input."""
    pairs = [(t, ct) for t, ct in zip(y, cotangents, strict=True) if t.requires_grad]
    if not pairs:
        return [torch.zeros_like(t) for t in x]
    outputs, weights = zip(*pairs, strict=True)
    grads = torch.autograd.grad(outputs, x, weights, allow_unused=True, **how)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(x, grads, strict=True)]
