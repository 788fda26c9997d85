"""Tangents of a function's results from one run under autograd.

By double backward: the pullback is linear in the cotangent, so the transpose of its derivative is the pushforward. That
is silently zero where a backward detaches or goes through NumPy, so it is compared with the backward itself.
Where the two contradict each other, or torch has no double backward, a few results get their tangents from rows of the
Jacobian, which take reverse mode alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from t2j_core.extend import modules_in_use

from .. import _compat
from .._base.errors import OUT_OF_MEMORY, NonDifferentiableError, first_line
from .dot_product_test import LARGER, SCALE, Sides, agree, is_proportional, may_be_rounding
from .flat_functions import requiring_grad
from .jacobian_rows import ROWS, n_rows, tangent_from_rows
from .made_up_numbers import small_normal
from .nondifferentiable import refuse_cut_backward, refuse_once_differentiable
from .pushforward import Pushforward


class _NotLinearError(NonDifferentiableError):
    """A backward that is not linear in its cotangent, so that it is not a derivative."""


class JvpByReverseMode:
    """One run of a function under autograd, from which the tangents of its results come.

    The function sees what it sees in reverse mode: grad mode is on, and its operands require gradients.
    """

    def __init__(self, pushforward: Pushforward) -> None:
        self.pushforward = pushforward
        self.x, self.ins, self.linear = pushforward.x, pushforward.ins, pushforward.linear
        self.tangents = [t.to(x.dtype) for t, x in zip(pushforward.tangents, pushforward.moved, strict=True)]

    def tangents_of_outputs(self, *, use_rows: bool) -> tuple[tuple[torch.Tensor, ...], str | None]:
        """The tangents, by double backward; and why they come from rows of the Jacobian, if that is a new decision."""
        with modules_in_use(until_the_end=True), torch.enable_grad():
            self.handles = requiring_grad(self.x, (*self.ins, *self.linear))
            y = self.pushforward.f(*self.handles)
            self.y = [y[i] for i in self.pushforward.outs]
            self._refuse_cut_backward()
            if use_rows and self._may_use_rows():
                return self._rows(), None
            try:
                return self._double_backward(), None
            except Exception as error:
                if isinstance(error, _NotLinearError) or not self._may_use_rows():
                    raise
                reason = None if isinstance(error, OUT_OF_MEMORY) else first_line(error)
            return self._rows(), reason

    def _may_use_rows(self) -> bool:
        """Whether rows are few and are not differentiated, which would take the double backward that has failed."""
        return n_rows([t for t in self.y if t.requires_grad]) <= ROWS and not self.pushforward.is_differentiated

    def _refuse_cut_backward(self) -> None:
        if self.linear:
            refuse_once_differentiable(self.linear, self.y)
            grads = self._pullback(
                {k: small_normal(y, k) for k, y in enumerate(self.y)}, self.linear, create_graph=False
            )
            refuse_cut_backward(self.linear, self.y, grads)

    def _pullback(
        self, cotangents: Mapping[int, torch.Tensor], ins: Sequence[int], *, create_graph: bool
    ) -> list[torch.Tensor | None]:
        """The cotangents of operands in JAX's convention, from those of some of `y`."""
        pairs = [(self.y[k], _compat.conj(ct)) for k, ct in cotangents.items() if self.y[k].requires_grad]
        if not pairs:
            return [None] * len(ins)
        grads = torch.autograd.grad(
            [p[0] for p in pairs],
            [self.handles[i] for i in ins],
            [p[1] for p in pairs],
            allow_unused=True,
            create_graph=create_graph,
            retain_graph=True,
        )
        return _compat.as_cotangents(grads)

    def _double_backward(self) -> tuple[torch.Tensor, ...]:
        r = [small_normal(y, k).requires_grad_() for k, y in enumerate(self.y)]
        g = self._pullback(dict(enumerate(r)), self.ins, create_graph=True)
        moved = [(gi, t) for gi, t in zip(g, self.tangents, strict=True) if gi is not None]
        pairs = [(gi, _compat.conj(t)) for gi, t in moved if gi.requires_grad]
        found: Sequence[torch.Tensor | None] = [None] * len(r)
        if pairs:
            found = torch.autograd.grad(
                [p[0] for p in pairs],
                r,
                [p[1] for p in pairs],
                allow_unused=True,
                create_graph=self.pushforward.is_differentiated,
            )
        dy = [
            _zeros(y) if d is None else _compat.conj(_compat.materialised(d))
            for d, y in zip(found, self.y, strict=True)
        ]
        sides = ([p[0] for p in moved], [p[1] for p in moved], r, dy)
        if not agree(*sides):
            self._refuse_not_linear(r, [gi.detach() for gi in sides[0]])
            if self._is_rounding(sides):
                return tuple(dy)
            raise NonDifferentiableError("The derivative of the backward contradicts the backward (`detach`, NumPy).")
        return tuple(dy)

    def _is_rounding(self, sides: Sides) -> bool:
        """Whether the difference changes as rounding does where the cotangents are scaled."""
        scaled = self._pullback_of_scaled(sides[2], SCALE)
        return may_be_rounding(sides, (scaled, *sides[1:3], [SCALE * d for d in sides[3]]))

    def _pullback_of_scaled(self, cotangents: Sequence[torch.Tensor], factor: float) -> list[torch.Tensor]:
        """The pullback of `factor` times the cotangents."""
        scaled = {k: factor * r.detach() for k, r in enumerate(cotangents)}
        return [g for g in self._pullback(scaled, self.ins, create_graph=False) if g is not None]

    def _refuse_not_linear(self, cotangents: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]) -> None:
        """Raise for a pullback that is not linear: its transpose and rows hold for one size of cotangent alone.

        `grads` is the pullback of `cotangents`.
        """
        if not is_proportional(grads, self._pullback_of_scaled(cotangents, LARGER), LARGER):
            raise _NotLinearError("The backward is not linear: a hook clamps or normalises the gradient.")

    def _rows(self) -> tuple[torch.Tensor, ...]:
        r = [small_normal(y, k) for k, y in enumerate(self.y)]
        self._refuse_not_linear(r, self._pullback_of_scaled(r, 1.0))
        return tuple(
            tangent_from_rows(y, functools.partial(self._row, k), self.tangents) if y.requires_grad else _zeros(y)
            for k, y in enumerate(self.y)
        )

    def _row(self, k: int, cotangent: torch.Tensor) -> list[torch.Tensor | None]:
        return self._pullback({k: cotangent}, self.ins, create_graph=False)


def _zeros(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(like.shape, dtype=like.dtype, device=like.device)
