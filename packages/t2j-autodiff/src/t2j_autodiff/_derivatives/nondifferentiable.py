"""What PyTorch cannot differentiate: its own errors in plain words, and errors where it would return zero silently."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from t2j_core.extend import describe

from .. import _compat
from .._base.errors import NonDifferentiableError
from .flat_functions import Tensors

_NO_DERIVATIVE = re.compile(r"(the )?derivative for '?[\w:.]+'? is not implemented")
_CONSTANT = re.compile(r"[Ff]unction '([\w:.]+)' is not differentiable with respect to argument '(\w+)'")


def refuse_no_derivative(error: RuntimeError) -> None:
    """Raise `NonDifferentiableError` where torch says that an operation has no derivative."""
    reason = _NO_DERIVATIVE.search(str(error))
    if reason is not None and not isinstance(error, NonDifferentiableError):
        raise NonDifferentiableError(
            f"PyTorch cannot differentiate an operation of this function: {reason.group()}."
        ) from error


def refuse_constant(error: Exception) -> None:
    """Raise `NonDifferentiableError` where torch says that an argument of an operation is a constant."""
    found = _CONSTANT.search(str(error))
    if found is not None and not isinstance(error, NonDifferentiableError):
        operation, argument = found.groups()
        raise NonDifferentiableError(
            describe(
                f"PyTorch does not differentiate `{operation}` with respect to `{argument}`, which is an input that "
                "this function is differentiated by, or is computed from one.",
                remedy="Differentiate with respect to the other inputs alone: of a module, "
                '`variables["params"]` without the buffers.',
            )
        ) from error


def refuse_once_differentiable(linear: Sequence[int], y: Iterable[torch.Tensor]) -> None:
    """Raise for a derivative whose backward is marked with `once_differentiable`.

    `linear` are the operands that a derivative is linear in; none for a function that is not a derivative.
    """
    if linear and _compat.is_once_differentiable(y):
        raise NonDifferentiableError("PyTorch marks a backward of this function with `once_differentiable`.")


def refuse_cut_backward(linear: Sequence[int], y: Tensors, grads: Sequence[torch.Tensor | None]) -> None:
    """Raise for a derivative `y` that is not zero, but whose graph does not reach what it is linear in.

    Its backward goes through NumPy, detaches, or runs under `no_grad` (as `torchdiffeq.odeint_adjoint` does), and
    autograd takes the derivative of such a backward for zero. `grads` are the cotangents of the operands `linear`.
    """
    if not linear:
        return
    suspects = y if all(g is None for g in grads) else [t for t in y if not t.requires_grad]
    if any(bool(t.detach().any()) for t in suspects):
        raise NonDifferentiableError(
            "A backward of this function is cut off from its gradient (`detach`, `no_grad`, NumPy), so PyTorch takes "
            "its derivative for zero."
        )
