"""Reverse mode of flat torch functions, computed by torch.

A flat function takes tensors and returns a tuple of tensors. Cotangents follow JAX's convention throughout, in which
the pullback is the transpose of the pushforward. PyTorch's is its conjugate transpose, so cotangents are conjugated on
their way in and out ("Autograd for Complex Numbers" in PyTorch's notes; "Complex numbers and differentiation" in JAX's
autodiff cookbook).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from t2j_core.extend import describe, modules_in_use

from .. import _compat
from .._base.errors import NonDifferentiableError

Flat = Callable[..., tuple[torch.Tensor, ...]]
Tensors = Sequence[torch.Tensor]


def vjp(
    f: Flat, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor], *, linear: Sequence[int] = ()
) -> tuple[torch.Tensor, ...]:
    """The cotangents of the inputs `ins`, from the cotangents of some outputs.

    Differentiable by torch itself, in `x` and in the cotangents, and works inside `torch.func.vmap`.

    `linear` are the inputs that a derivative is linear in. A backward that PyTorch cannot differentiate shows there.
    """
    cotangents = {i: _compat.conj(ct) for i, ct in cotangents.items()}
    with modules_in_use(until_the_end=True):
        try:
            if _compat.in_transform():
                grads = _vjp_in_transform(f, x, ins, cotangents)
            else:
                grads = _vjp(f, x, ins, cotangents, linear)
        except RuntimeError as error:  # or NotImplementedError, which is one
            _raise_if_there_is_no_derivative(error)
            refuse_constant(error)
            raise
    return tuple(_compat.conj(_compat.materialised(g)) for g in grads)


def _raise_if_there_is_no_derivative(error: RuntimeError) -> None:
    """Raise `NonDifferentiableError` where torch says that an operation has no derivative."""
    reason = _NO_DERIVATIVE.search(str(error))
    if reason is not None and not isinstance(error, NonDifferentiableError):
        raise NonDifferentiableError(
            f"PyTorch cannot differentiate an operation of this function: {reason.group()}."
        ) from error


_NO_DERIVATIVE = re.compile(r"(the )?derivative for '?[\w:.]+'? is not implemented")


def refuse_constant(error: Exception) -> None:
    """Raise `NonDifferentiableError` where torch says that an argument of an operation is a constant."""
    found = _CONSTANT.search(str(error))
    if found is not None and not isinstance(error, NonDifferentiableError):
        operation, argument = found.groups()
        raise NonDifferentiableError(
            describe(
                f"PyTorch does not differentiate `{operation}` with respect to `{argument}`, which is an input that "
                "this is the derivative by, or computed from one.",
                remedy="Differentiate with respect to the other inputs alone: of a module, "
                '`variables["params"]` without the buffers.',
            )
        ) from error


_CONSTANT = re.compile(r"[Ff]unction '([\w:.]+)' is not differentiable with respect to argument '(\w+)'")


def _vjp(
    f: Flat, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor], linear: Sequence[int]
) -> Tensors:
    differentiable = any(t.requires_grad for t in (*x, *cotangents.values()))
    with torch.enable_grad():
        handles = watched(x, (*ins, *linear))
        y = f(*handles)
        refuse_once_differentiable(linear, (y[i] for i in cotangents))
        pairs = [(y[i], ct.to(y[i].dtype)) for i, ct in cotangents.items() if y[i].requires_grad]
        grads: Sequence[torch.Tensor | None] = [None] * (len(ins) + len(linear))
        if pairs:
            grads = torch.autograd.grad(
                [p[0] for p in pairs],
                [handles[i] for i in (*ins, *linear)],
                [p[1] for p in pairs],
                allow_unused=True,
                create_graph=differentiable,
            )
        refuse_cut_backward(linear, [y[i] for i in cotangents], grads[len(ins) :])
    return [torch.zeros_like(x[i]) if g is None else g for i, g in zip(ins, grads, strict=False)]


def watched(x: Tensors, indices: Iterable[int]) -> list[torch.Tensor]:
    """The inputs as a function gets them where derivatives with respect to `indices` are recorded.

    A function sees leaves, but for results of an outer function. These become views: handles of their own, through
    which an outer derivative still reaches the tensors.
    """
    handles = list(x)
    for i in indices:
        if not x[i].requires_grad:
            handles[i] = x[i].detach().requires_grad_()
        elif not x[i].is_leaf or sum(t is x[i] for t in x) > 1:
            handles[i] = x[i].view_as(x[i])
    return handles


def refuse_once_differentiable(linear: Sequence[int], y: Iterable[torch.Tensor]) -> None:
    """Raise for a derivative whose backward was marked with `once_differentiable`."""
    if linear and _compat.is_once_differentiable(y):
        raise NonDifferentiableError("PyTorch marks a backward of this function with `once_differentiable`.")


def refuse_cut_backward(linear: Sequence[int], y: Tensors, grads: Sequence[torch.Tensor | None]) -> None:
    """Raise for a derivative that is not zero, although to autograd it depends on nothing that it is linear in.

    Such is a backward that goes through NumPy, detaches, or runs under `no_grad` (`torchdiffeq.odeint_adjoint`).
    Autograd takes derivatives of it for zero, without a word.
    """
    if not linear:
        return
    suspects = y if all(g is None for g in grads) else [t for t in y if not t.requires_grad]
    if any(bool(t.detach().any()) for t in suspects):
        raise NonDifferentiableError(
            "A backward of this function is cut off from its gradient (`detach`, `no_grad`, NumPy), so PyTorch takes "
            "its derivative for zero."
        )


def can_require_grad(t: torch.Tensor) -> bool:
    """Whether autograd can differentiate with respect to a tensor."""
    return t.is_floating_point() or t.is_complex()


def _vjp_in_transform(f: Flat, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor]) -> Tensors:
    # `torch.func.vjp` returns three values only where it is told that there is an auxiliary output.
    y, pull = torch.func.vjp(restricted(f, x, ins, tuple(cotangents)), *(x[i] for i in ins))  # type: ignore[misc]
    return pull(tuple(ct.to(yi.dtype) for yi, ct in zip(y, cotangents.values(), strict=True)))


def restricted(f: Flat, x: Tensors, ins: Sequence[int], outs: Sequence[int] | None = None) -> Flat:
    """`f` as a function of some inputs to some outputs, or all."""

    def g(*moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = list(x)
        for i, value in zip(ins, moved, strict=True):
            inputs[i] = value
        y = f(*inputs)
        return tuple(y) if outs is None else tuple(y[i] for i in outs)

    return g


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    try:
        text = str(error)
    except Exception:  # its class is the user's
        return type(error).__name__
    return f"{type(error).__name__}: {text.strip().partition(chr(10))[0][:200]}"
