"""Second derivatives of one sample: all three nestings of the two modes, on one Hessian product."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import torch
from case import Case, pulled_back
from judge import NotCounted, Tensors, compare, is_inexact, leaves_of, native, noise, twin
from t2j_autodiff import t2j

STEP = 1e-6  # of the differences, along a tangent of size 1
CONTRADICTION = 1e-3  # larger than the error of differences in float64


class SecondDerivatives(Case):
    """The Hessian of a random combination of the outputs, times a random tangent.

    The Hessian is symmetric, so each nesting gives this product. Native torch computes it by a double backward; where
    an operator has none, by forward mode over the pullback. Differences of torch's gradients judge the judge.
    """

    @cached_property
    def weights(self) -> Tensors:
        """The cotangents of the outputs."""
        return noise(self.smooth_outputs, 7)

    @cached_property
    def direction(self) -> Tensors:
        """The tangents of the inputs."""
        return noise([self.tensors[i] for i in self.moving], 8)

    @property
    def torch_weights(self) -> Tensors:
        """The same cotangents in torch's convention."""
        return [weight.conj() for weight in self.weights]

    @cached_property
    def product(self) -> Tensors:
        try:
            found = self.double_backward()
        except Exception:
            found = native(self.forward_over_reverse)
        if self.how.dtype == "float64" and self.is_contradicted_by_differences(found):
            raise NotCounted("the second derivative of torch contradicts its first")
        return found

    @cached_property
    def forward_product(self) -> Tensors:
        """The product by forward mode over the pullback, where the double backward is NaN.

        Torch's two ways may differ at a point without a second derivative, such as the norm at zero.
        """
        if any(t.isnan().any() for t in self.product):
            try:
                return self.forward_over_reverse()
            except Exception:
                return self.product
        return self.product

    def is_contradicted_by_differences(self, found: Tensors) -> bool:
        """Whether differences of torch's gradients along the tangent are others.

        They say nothing where the gradient jumps, as where a label moves. NaN contradicts nothing.
        """
        down, here, up = (flat(self.gradients_at(step)) for step in (-STEP, 0.0, STEP))
        if max((up - here).norm(), (down - here).norm()) > CONTRADICTION * (1.0 + here.norm()):
            return False
        differences = (up - down) / (2 * STEP)
        return bool((differences - flat(found)).norm() > CONTRADICTION * (1.0 + differences.norm()))

    def gradients_at(self, step: float) -> Tensors:
        """The gradients at a point along the tangent."""
        x = list(self.tensors)
        for i, t in zip(self.moving, self.direction, strict=True):
            x[i] = x[i] + step * t
        return self.native_vjp(x, self.moving, self.weights)

    def double_backward(self) -> Tensors:
        x, y = self.differentiable(self.tensors, self.moving)
        return pulled_back(pulled_back(y, x, self.torch_weights, create_graph=True), x, self.direction)

    def forward_over_reverse(self) -> Tensors:
        def pull(*moving: torch.Tensor) -> tuple[torch.Tensor, ...]:
            def values(*at: torch.Tensor) -> tuple[torch.Tensor, ...]:
                x = [twin(t) for t in self.tensors]
                for i, t in zip(self.moving, at, strict=True):
                    x[i] = t
                return tuple(y for y in leaves_of(self.fn(*x)) if is_inexact(y))

            return torch.func.vjp(values, *moving)[1](tuple(self.torch_weights))

        primals = tuple(twin(self.tensors[i]) for i in self.moving)
        return list(torch.func.jvp(pull, primals, tuple(self.direction), strict=True)[1])

    def check(self, nesting: Callable[[list[Any], list[Any], list[Any]], Any], is_forward: bool = False) -> None:
        if any(self.tensors[i].is_complex() for i in self.moving):
            raise NotCounted("complex input")  # its Hessian is not symmetric in the conventions of JAX and torch
        expected = self.forward_product if is_forward else self.product
        got = self.run(nesting)(self.arrays, list(map(t2j, self.weights)), list(map(t2j, self.direction)))
        compare(got, expected, self.tolerance)

    def vjp_vjp(self) -> None:
        """Reverse mode over reverse mode."""

        def nesting(arrays: list[Any], weights: list[Any], direction: list[Any]) -> Any:
            g, x = self.restricted(arrays, self.moving), [arrays[i] for i in self.moving]
            return jax.vjp(lambda *at: jax.vjp(g, *at)[1](weights), *x)[1](tuple(direction))

        self.check(nesting)

    def jvp_vjp(self) -> None:
        """Forward mode over reverse mode."""

        def nesting(arrays: list[Any], weights: list[Any], direction: list[Any]) -> Any:
            g, x = self.restricted(arrays, self.moving), [arrays[i] for i in self.moving]
            return jax.jvp(lambda *at: jax.vjp(g, *at)[1](weights), x, direction)[1]

        self.check(nesting, is_forward=True)

    def vjp_jvp(self) -> None:
        """Reverse mode over forward mode."""

        def nesting(arrays: list[Any], weights: list[Any], direction: list[Any]) -> Any:
            g, x = self.restricted(arrays, self.moving), [arrays[i] for i in self.moving]
            return jax.vjp(lambda *at: jax.jvp(g, at, tuple(direction))[1], *x)[1](weights)

        self.check(nesting)


def flat(tensors: Tensors) -> torch.Tensor:
    """All numbers in one row."""
    return torch.cat([t.flatten() for t in tensors])
