"""Forward mode of flat torch functions: `torch.func.jvp`, and what takes its place where torch has none.

The pullback is linear in the cotangent, and the transpose of the transpose is the pushforward. So the backward is
differentiated where an operation has no forward mode. That derivative is silently zero where a backward detaches or
goes through NumPy, so it is compared with the pullback itself: for tangents t, a random cotangent r and
g = pullback(r), the tangents dy of the outputs satisfy sum(g t) = sum(r dy). Where they do not, or torch has no double
backward, a few outputs get their tangents from rows of the Jacobian, which take reverse mode alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from t2j_core.extend import modules_in_use, turns

from . import _compat
from ._differentiate import (
    Flat,
    Tensors,
    first_line,
    refuse_cut_backward,
    refuse_once_differentiable,
    restricted,
    vjp,
    watched,
)
from ._errors import OUT_OF_MEMORY, NonDifferentiableError
from ._forward_level import in_forward_level

one_at_a_time = turns
"""Torch's forward mode is for one thread at a time, and its choice of attention kernel is global."""

ROWS = 256
"""How many rows of a Jacobian are computed at most, for the outputs of one call."""

_CHECKS = 3  # how many runs without a tangent are compared with reverse mode
_SEED = 2891336453  # of the cotangents that derivatives are compared at


@dataclass(eq=False)
class ForwardMode:
    """How forward mode of one function is computed, and why. `report` is told each time that changes."""

    report: Callable[[str], None]
    failure: str | None = None  # why `torch.func.jvp` is not used
    rows_because: str | None = None  # why the backward is not differentiated either
    checks: int = 0  # how often a missing tangent was found to be zero

    def use_reverse_mode(self, failure: str) -> None:
        """Do without `torch.func.jvp` from now on."""
        self.failure = failure
        self._tell()

    def use_rows(self, reason: str) -> None:
        """Compute rows of the Jacobian from now on."""
        self.rows_because = reason
        self._tell()

    def _tell(self) -> None:
        if self.failure is not None:
            how = "transposed reverse mode" if self.rows_because is None else "rows of the Jacobian"
            reasons = (self.failure, self.rows_because)
            self.report(f"{how} ({'; '.join(reason for reason in reasons if reason is not None)})")


def jvp(
    f: Flat,
    x: Tensors,
    ins: Sequence[int],
    tangents: Tensors,
    outs: Sequence[int],
    known: ForwardMode,
    *,
    linear: Sequence[int] = (),
) -> tuple[torch.Tensor, ...]:
    """The tangents of the outputs `outs`, from tangents of the inputs `ins`; `linear` is as in `vjp`."""
    with one_at_a_time, _compat.math_attention():
        _compat.prepare_forward_mode()
        failure: tuple[type, str, str] | None = None  # not the exception, whose frames hold the arguments
        if known.failure is None:
            try:
                return _forward_mode(f, x, ins, tangents, outs, known, linear)
            except OUT_OF_MEMORY:  # the other ways take more
                raise
            except Exception as error:
                if _compat.in_transform():  # where no result can be looked at: the batch runs in turn then
                    raise
                failure = type(error), str(error), first_line(error)
        elif _compat.in_transform():
            raise NonDifferentiableError(f"PyTorch has no forward mode here ({known.failure}).")
        try:
            dy = _ReverseMode(f, x, ins, tangents, outs, linear).tangents_of_outputs(known)
        except Exception as error:
            if failure is None or failure[:2] == (type(error), str(error)):
                raise
            raise _neither(failure[2], first_line(error)) from error
        if failure is not None:
            known.use_reverse_mode(failure[2])
        return dy


def _neither(forward: str, reverse: str) -> NonDifferentiableError:
    return NonDifferentiableError(
        "PyTorch cannot compute the forward-mode derivative of this function.\n"
        f"  Forward mode failed:     {forward}\n"
        f"  Double backward failed:  {reverse}\n"
        "Use reverse mode (`jax.grad`, `jax.vjp`, `jax.jacrev`), or give the `autograd.Function` a `jvp`."
    )


# --- torch.func.jvp ------------------------------------------------------------------------------------------------


def _forward_mode(
    f: Flat,
    x: Tensors,
    ins: Sequence[int],
    tangents: Tensors,
    outs: Sequence[int],
    known: ForwardMode,
    linear: Sequence[int],
) -> tuple[torch.Tensor, ...]:
    moved = tuple(x[i] for i in ins)
    tangents = tuple(t.to(m.dtype) for t, m in zip(tangents, moved, strict=True))
    g = restricted(f, x, ins, outs)
    still: list[int] = []

    def run(*moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with _compat.faithful_forward_mode():
            y = g(*moved)
        still[:] = [i for i, t in zip(outs, y, strict=True) if not _compat.has_tangent(t)]
        return y

    _, dy = in_forward_level(lambda: torch.func.jvp(run, moved, tangents))  # type: ignore[misc]
    if still and known.checks < _CHECKS:
        _confirm_zero(f, x, ins, tangents, {i: t for i, t in zip(outs, dy, strict=True) if i in still}, known, linear)
    return tuple(map(_compat.materialised, dy))


def _confirm_zero(
    f: Flat,
    x: Tensors,
    ins: Sequence[int],
    tangents: Tensors,
    still: Mapping[int, torch.Tensor],
    known: ForwardMode,
    linear: Sequence[int],
) -> None:
    """Raise where outputs without a tangent have a gradient.

    Code that looks at `requires_grad` may take a way that forward mode cannot follow, for forward mode does not set it.
    """
    message = "Forward mode has no tangent where reverse mode has a gradient."
    if _compat.in_transform():
        if _have_gradient(f, x, ins, tuple(still)):
            raise NonDifferentiableError(message)
        return
    try:
        g = vjp(f, [t.detach() for t in x], ins, {i: normal(t) for i, t in still.items()}, linear=linear)
    except NonDifferentiableError:
        raise
    except Exception:  # there is no gradient to compare with
        return
    if not agree(g, tangents, (), ()):
        raise NonDifferentiableError(message)
    known.checks += 1


def _have_gradient(f: Flat, x: Tensors, ins: Sequence[int], outs: Sequence[int]) -> bool:
    """Whether autograd sees that one of the outputs depends on the inputs `ins`."""
    found: list[bool] = []
    g = restricted(f, x, ins, outs)

    def run(*moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = g(*moved)
        found[:] = [t.requires_grad for t in y]
        return y

    torch.func.vjp(run, *(x[i] for i in ins))
    return any(found)


# --- from reverse mode ---------------------------------------------------------------------------------------------


class _ReverseMode:
    """One run of a function under autograd, which gives tangents of its outputs.

    The function sees what it sees in reverse mode: grad mode is on, and its inputs require gradients.
    """

    def __init__(
        self,
        f: Flat,
        x: Tensors,
        ins: Sequence[int],
        tangents: Tensors,
        outs: Sequence[int],
        linear: Sequence[int],
    ) -> None:
        self.f, self.x, self.ins, self.outs, self.linear = f, x, ins, outs, linear
        self.tangents = [t.to(x[i].dtype) for i, t in zip(ins, tangents, strict=True)]
        self.is_differentiated = any(t.requires_grad for t in (*x, *tangents))

    def tangents_of_outputs(self, known: ForwardMode) -> tuple[torch.Tensor, ...]:
        """The tangents, by the derivative of the backward or by rows of the Jacobian."""
        with modules_in_use(until_the_end=True), torch.enable_grad():
            self.handles = watched(self.x, (*self.ins, *self.linear))
            y = self.f(*self.handles)
            self.y = [y[i] for i in self.outs]
            self._refuse_cut_backward()
            if known.rows_because is not None and self._may_use_rows():
                return self._rows()
            try:
                return self._transposed()
            except Exception as error:
                if not self._may_use_rows():
                    raise
                reason = None if isinstance(error, OUT_OF_MEMORY) else first_line(error)
            dy = self._rows()
            if reason is not None:
                known.use_rows(reason)
            return dy

    def _may_use_rows(self) -> bool:
        """Whether rows are few, and are not differentiated: that would be the derivative that cannot be trusted."""
        rows = sum(t.numel() * (1 + t.is_complex()) for t in self.y if t.requires_grad)
        return rows <= ROWS and not self.is_differentiated

    def _refuse_cut_backward(self) -> None:
        if self.linear:
            refuse_once_differentiable(self.linear, self.y)
            pulled = self._pull(dict(enumerate(map(normal, self.y))), self.linear, create_graph=False)
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
        r = [normal(y).requires_grad_() for y in self.y]
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
                create_graph=self.is_differentiated,
            )
        dy = [
            _zeros(y) if d is None else _compat.conj(_compat.materialised(d))
            for d, y in zip(found, self.y, strict=True)
        ]
        if not agree([p[0] for p in moved], [p[1] for p in moved], r, dy):
            raise NonDifferentiableError("The derivative of the backward contradicts the backward (`detach`, NumPy).")
        return tuple(dy)

    # --- rows ---

    def _rows(self) -> tuple[torch.Tensor, ...]:
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


# --- comparison ----------------------------------------------------------------------------------------------------


def normal(like: torch.Tensor) -> torch.Tensor:
    """Small random numbers of a generator of their own: nothing is drawn from the user's.

    They are small because a hook on a tensor may clip a large gradient.
    """
    generator = torch.Generator(device=like.device).manual_seed(_SEED)
    r = torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    return r * 2**-10 if torch.finfo(like.dtype).eps < 1e-6 else r


def agree(g: Tensors, t: Tensors, r: Tensors, dy: Tensors) -> bool:
    """Whether sum(g t) = sum(r dy), up to rounding."""
    if not any(bool(gi.any()) for gi in g) and not any(bool(d.any()) for d in dy):
        return True
    left, right = _products(g, t), _products(r, dy)
    sums = left.sum(), right.sum()
    if not any(bool(total.isfinite()) for total in sums):
        return True
    eps = max(torch.finfo(x.dtype).eps for x in (*g, *dy))
    tolerance = min(1e3 * eps, 0.1) if any(bool(d.any()) for d in dy) else 30 * eps
    scale = max(float(left.norm()), float(right.norm()))
    return bool((sums[0] - sums[1]).abs() <= tolerance * scale)


def _products(a: Tensors, b: Tensors) -> torch.Tensor:
    """The real parts of all products, in double precision."""
    terms = [(_wide(x) * _wide(y)).real.flatten().cpu() for x, y in zip(a, b, strict=True)]
    return torch.cat(terms) if terms else torch.zeros(0, dtype=torch.float64)


def _wide(t: torch.Tensor) -> torch.Tensor:
    return t.detach().to(torch.complex128 if t.is_complex() else torch.float64)
