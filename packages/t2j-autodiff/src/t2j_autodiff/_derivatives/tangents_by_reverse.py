"""Tangents of a function's outputs from one run under autograd.

The backward is differentiated where an operation has no forward mode. That derivative is silently zero where a backward
detaches or goes through NumPy, so it is compared with the backward itself. Where the two contradict each other, or
torch has no double backward, a few outputs get their tangents from rows of the Jacobian, which take reverse mode alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from t2j_core.extend import modules_in_use

from .. import _compat
from .._base.errors import OUT_OF_MEMORY, NonDifferentiableError
from .agreement import LARGER, SCALE, Sides, agree, is_proportional, may_be_rounding, normal
from .pushforward import Pushforward
from .reverse_mode import first_line, refuse_cut_backward, refuse_once_differentiable, watched

ROWS = 256
"""How many rows of a Jacobian are computed at most, for the outputs of one call."""


class _NotLinearError(NonDifferentiableError):
    """A backward that is no derivative."""


class ReverseMode:
    """One run of a function under autograd, which gives tangents of its outputs.

    The function sees what it sees in reverse mode: grad mode is on, and its inputs require gradients.
    """

    def __init__(self, push: Pushforward) -> None:
        self.push, self.x, self.ins, self.linear = push, push.x, push.ins, push.linear
        self.tangents = [t.to(x.dtype) for t, x in zip(push.tangents, push.moved, strict=True)]

    def tangents_of_outputs(self, *, use_rows: bool) -> tuple[tuple[torch.Tensor, ...], str | None]:
        """The tangents, by the derivative of the backward; with the reason why by rows of the Jacobian."""
        with modules_in_use(until_the_end=True), torch.enable_grad():
            self.handles = watched(self.x, (*self.ins, *self.linear))
            y = self.push.f(*self.handles)
            self.y = [y[i] for i in self.push.outs]
            self._refuse_cut_backward()
            if use_rows and self._may_use_rows():
                return self._rows(), None
            try:
                return self._transposed(), None
            except Exception as error:
                if isinstance(error, _NotLinearError) or not self._may_use_rows():
                    raise
                reason = None if isinstance(error, OUT_OF_MEMORY) else first_line(error)
            return self._rows(), reason

    def _may_use_rows(self) -> bool:
        """Whether rows are few, and are not differentiated: that would be the derivative that cannot be trusted."""
        rows = sum(t.numel() * (1 + t.is_complex()) for t in self.y if t.requires_grad)
        return rows <= ROWS and not self.push.is_differentiated

    def _refuse_cut_backward(self) -> None:
        if self.linear:
            refuse_once_differentiable(self.linear, self.y)
            pulled = self._pull({k: normal(y, k) for k, y in enumerate(self.y)}, self.linear, create_graph=False)
            refuse_cut_backward(self.linear, self.y, pulled)

    def _pull(
        self, cotangents: Mapping[int, torch.Tensor], ins: Sequence[int], *, create_graph: bool
    ) -> list[torch.Tensor | None]:
        """The cotangents of inputs in JAX's convention, from those of some of `y`."""
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
        return [None if g is None else _compat.conj(_compat.materialised(g)) for g in grads]

    # --- the derivative of the backward ---

    def _transposed(self) -> tuple[torch.Tensor, ...]:
        r = [normal(y, k).requires_grad_() for k, y in enumerate(self.y)]
        g = self._pull(dict(enumerate(r)), self.ins, create_graph=True)
        moved = [(gi, t) for gi, t in zip(g, self.tangents, strict=True) if gi is not None]
        pairs = [(gi, _compat.conj(t)) for gi, t in moved if gi.requires_grad]
        found: Sequence[torch.Tensor | None] = [None] * len(r)
        if pairs:
            found = torch.autograd.grad(
                [p[0] for p in pairs],
                r,
                [p[1] for p in pairs],
                allow_unused=True,
                create_graph=self.push.is_differentiated,
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
        """Whether what differs is lost anew where the cotangents are scaled."""
        scaled = self._scaled(sides[2], SCALE)
        return may_be_rounding(sides, (scaled, *sides[1:3], [SCALE * d for d in sides[3]]))

    def _scaled(self, cotangents: Sequence[torch.Tensor], factor: float) -> list[torch.Tensor]:
        """The pullback of `factor` times the cotangents."""
        scaled = {k: factor * r.detach() for k, r in enumerate(cotangents)}
        return [g for g in self._pull(scaled, self.ins, create_graph=False) if g is not None]

    def _refuse_not_linear(self, cotangents: Sequence[torch.Tensor], pulled: Sequence[torch.Tensor]) -> None:
        """Raise for a pullback that is not linear, whose transpose or rows are those of one size of the cotangent.

        `pulled` is the pullback of `cotangents`.
        """
        if not is_proportional(pulled, self._scaled(cotangents, LARGER), LARGER):
            raise _NotLinearError("The backward is not linear: a hook clamps or normalises the gradient.")

    # --- rows ---

    def _rows(self) -> tuple[torch.Tensor, ...]:
        r = [normal(y, k) for k, y in enumerate(self.y)]
        self._refuse_not_linear(r, self._scaled(r, 1.0))
        return tuple(self._from_rows(k) if y.requires_grad else _zeros(y) for k, y in enumerate(self.y))

    def _from_rows(self, k: int) -> torch.Tensor:
        """The tangent of one of `y`. Only the real part of sum(g t) = sum(r dy) holds for complex numbers."""
        y = self.y[k]
        dy = torch.zeros(y.numel(), dtype=y.dtype, device=y.device)
        for j in range(y.numel()):
            real = self._product(k, j, 1)
            dy[j] = torch.complex(real, self._product(k, j, -1j)) if y.is_complex() else real
        return dy.view(y.shape)

    def _product(self, k: int, j: int, weight: Any) -> torch.Tensor:
        ct = torch.zeros(self.y[k].numel(), dtype=self.y[k].dtype, device=self.y[k].device)
        ct[j] = weight
        g = self._pull({k: ct.view(self.y[k].shape)}, self.ins, create_graph=False)
        terms = [(gi * t).sum() for gi, t in zip(g, self.tangents, strict=True) if gi is not None]
        products = [t.real if t.is_complex() else t for t in terms]
        return sum(products, torch.zeros((), dtype=_real_dtype(ct), device=ct.device))


def _zeros(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(like.shape, dtype=like.dtype, device=like.device)


def _real_dtype(t: torch.Tensor) -> torch.dtype:
    return t.dtype.to_real() if t.is_complex() else t.dtype
