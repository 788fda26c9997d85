"""Derivatives of flat torch functions, computed by torch.

A flat function takes tensors and answers a tuple of tensors. Cotangents follow JAX's convention throughout, in which
the pullback is the transpose of the pushforward. PyTorch's is its conjugate transpose, so cotangents are conjugated on
their way in and out ("Autograd for Complex Numbers" in PyTorch's notes; "Complex numbers and differentiation" in JAX's
autodiff cookbook).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from t2j_core.extend import modules_in_use, turns

from . import _compat
from ._errors import NonDifferentiableError
from ._forward_level import in_forward_level

Flat = Callable[..., tuple[torch.Tensor, ...]]
Tensors = Sequence[torch.Tensor]

one_at_a_time = turns
"""Torch's forward mode is for one thread at a time, and its choice of attention kernel is global."""


def vjp(
    f: Flat,
    x: Tensors,
    ins: Sequence[int],
    cotangents: Mapping[int, torch.Tensor],
    *,
    is_of_derivative: bool = False,
) -> tuple[torch.Tensor, ...]:
    """The cotangents of the inputs `ins`, from the cotangents of some outputs.

    Differentiable by torch itself, in `x` and in the cotangents, and works inside `torch.func.vmap`.
    """
    cotangents = {i: _compat.conj(ct) for i, ct in cotangents.items()}
    with modules_in_use(until_the_end=True):
        if _compat.in_transform():
            grads = _vjp_in_transform(f, x, ins, cotangents)
        else:
            grads = _vjp(f, x, ins, cotangents, is_of_derivative)
    return tuple(_compat.conj(_compat.materialised(g)) for g in grads)


def _vjp(
    f: Flat, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor], is_of_derivative: bool
) -> Tensors:
    differentiable = any(t.requires_grad for t in (*x, *cotangents.values()))
    with torch.enable_grad():
        handles = list(x)
        # `once_differentiable` shows only where everything is watched.
        watched = [i for i, t in enumerate(x) if i in ins or (is_of_derivative and _can_require_grad(t))]
        for i in watched:  # a view is a handle of its own, through which an outer derivative still reaches the tensor
            handles[i] = x[i].view_as(x[i]) if x[i].requires_grad else x[i].detach().requires_grad_()
        y = f(*handles)
        if is_of_derivative and _compat.is_once_differentiable(y[i] for i in cotangents):
            raise NonDifferentiableError("PyTorch marks a backward of this function with `once_differentiable`.")
        pairs = [(y[i], ct.to(y[i].dtype)) for i, ct in cotangents.items() if y[i].requires_grad]
        if not pairs:
            return [torch.zeros_like(x[i]) for i in ins]
        grads = torch.autograd.grad(
            [p[0] for p in pairs],
            [handles[i] for i in ins],
            [p[1] for p in pairs],
            allow_unused=True,
            create_graph=differentiable,
        )
    return [torch.zeros_like(x[i]) if g is None else g for i, g in zip(ins, grads, strict=True)]


def _can_require_grad(t: torch.Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _vjp_in_transform(f: Flat, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor]) -> Tensors:
    pull: Any  # `torch.func.vjp` answers three values only where it is told that there is an auxiliary output
    y, pull = torch.func.vjp(_restricted(f, x, ins, tuple(cotangents)), *(x[i] for i in ins))  # type: ignore[misc]
    return pull(tuple(ct.to(yi.dtype) for yi, ct in zip(y, cotangents.values(), strict=True)))


def _restricted(f: Flat, x: Tensors, ins: Sequence[int], outs: Sequence[int]) -> Flat:
    """`f` as a function of some inputs to some outputs."""

    def g(*moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = list(x)
        for i, value in zip(ins, moved, strict=True):
            inputs[i] = value
        y = f(*inputs)
        return tuple(y[i] for i in outs)

    return g


def jvp(
    f: Flat, x: Tensors, ins: Sequence[int], tangents: Tensors, outs: Sequence[int], *, has_forward_mode: bool = True
) -> tuple[tuple[torch.Tensor, ...], str | None]:
    """The tangents of the outputs `outs`, from tangents of the inputs `ins`; and why forward mode failed, if it did.

    Where an operation has no forward mode, the pullback is transposed: it is linear in the cotangent, and the
    transpose of the transpose is the pushforward.
    """
    with one_at_a_time, _compat.math_attention():
        _compat.prepare_forward_mode()
        failure: Exception | None = None
        if has_forward_mode:
            try:
                return _forward_mode(f, x, ins, tangents, outs), None
            except Exception as error:
                failure = error
        try:
            return _transposed_vjp(f, x, ins, tangents, outs), first_line(failure) if failure else None
        except Exception as error:
            if failure is None or first_line(failure) == first_line(error):
                raise
            raise NonDifferentiableError(
                "PyTorch cannot compute the forward-mode derivative of this function.\n"
                f"  Forward mode failed:     {first_line(failure)}\n"
                f"  Double backward failed:  {first_line(error)}\n"
                "Use reverse mode (`jax.grad`, `jax.vjp`, `jax.jacrev`), or give the `autograd.Function` a `jvp`."
            ) from error


def _forward_mode(
    f: Flat, x: Tensors, ins: Sequence[int], tangents: Tensors, outs: Sequence[int]
) -> tuple[torch.Tensor, ...]:
    moved = tuple(x[i] for i in ins)
    tangents = tuple(t.to(m.dtype) for t, m in zip(tangents, moved, strict=True))
    g = _restricted(f, x, ins, outs)

    def watched(*moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with _compat.no_grad_stops_forward_mode():
            return g(*moved)

    _, dy = in_forward_level(lambda: torch.func.jvp(watched, moved, tangents))  # type: ignore[misc]
    return tuple(map(_compat.materialised, dy))


def _transposed_vjp(
    f: Flat, x: Tensors, ins: Sequence[int], tangents: Tensors, outs: Sequence[int]
) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        y = f(*x)

    n = len(x)

    def pullback(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return vjp(f, a[:n], ins, dict(zip(outs, a[n:], strict=True)))

    anywhere = [torch.zeros_like(y[i]) for i in outs]
    of_cotangents = range(n, n + len(outs))
    return vjp(pullback, (*x, *anywhere), of_cotangents, dict(enumerate(tangents)), is_of_derivative=True)


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    try:
        text = str(error)
    except Exception:  # its class is the user's
        return type(error).__name__
    return f"{type(error).__name__}: {text.strip().partition(chr(10))[0][:200]}"
