"""Reverse mode of flat functions, computed by torch.

Cotangents follow JAX's convention throughout, in which the pullback is the transpose of the pushforward. PyTorch's is
the conjugate transpose, so cotangents are conjugated on their way in and out. See "Autograd for Complex Numbers" in
https://docs.pytorch.org/docs/stable/notes/autograd.html, and "Complex numbers and differentiation" in
https://docs.jax.dev/en/latest/notebooks/autodiff_cookbook.html.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from t2j_core.extend import FlatFunction, Keys, modules_in_use

from .. import _compat
from .flat_functions import Tensors, requiring_grad, restricted
from .nondifferentiable import refuse_constant, refuse_cut_backward, refuse_no_derivative, refuse_once_differentiable

Pullback = Callable[[Tensors, Sequence[int], Mapping[int, torch.Tensor]], Tensors]
"""(x, ins, cotangents of some results) to the cotangents of the operands `ins`."""


def vjp(
    f: FlatFunction,
    x: Tensors,
    ins: Sequence[int],
    cotangents: Mapping[int, torch.Tensor],
    *,
    linear: Sequence[int] = (),
) -> tuple[torch.Tensor, ...]:
    """The cotangents of the operands `ins`, from the cotangents of some results.

    Torch can differentiate this in `x` and in the cotangents, and batch it by `torch.func.vmap`.

    `linear` are the operands that `f` is linear in, if it is itself a derivative. They show whether PyTorch can
    differentiate the backward that `f` runs.
    """
    cotangents = {i: _compat.conj(ct) for i, ct in cotangents.items()}
    with modules_in_use(until_the_end=True):
        try:
            if _compat.in_transform():
                grads = _vjp_in_transform(f, x, ins, cotangents)
            else:
                grads = _vjp(f, x, ins, cotangents, linear)
        except RuntimeError as error:  # the base of `NotImplementedError`
            refuse_no_derivative(error)
            refuse_constant(error)
            raise
    return tuple(_compat.as_cotangents(grads))


def _vjp(
    f: FlatFunction, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor], linear: Sequence[int]
) -> Tensors:
    is_differentiated = any(t.requires_grad for t in (*x, *cotangents.values()))
    with torch.enable_grad(), Keys() as keys:
        handles = requiring_grad(x, (*ins, *linear))
        y = f(*handles)
        refuse_once_differentiable(linear, (y[i] for i in cotangents))
        pairs = [(y[i], _compat.with_dtype(ct, y[i].dtype)) for i, ct in cotangents.items() if y[i].requires_grad]
        grads: Sequence[torch.Tensor | None] = [None] * (len(ins) + len(linear))
        if pairs:
            grads = _compat.engine_grad(
                [p[0] for p in pairs],
                [handles[i] for i in (*ins, *linear)],
                [p[1] for p in pairs],
                create_graph=is_differentiated,
                around=keys.again(),
            )
        refuse_cut_backward(linear, [y[i] for i in cotangents], grads[len(ins) :])
    return [torch.zeros_like(x[i]) if g is None else g for i, g in zip(ins, grads, strict=False)]


def _vjp_in_transform(
    f: FlatFunction, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor]
) -> Tensors:
    of_moved = restricted(f, x, ins, tuple(cotangents))
    return _compat.flat_vjp(of_moved, [x[i] for i in ins], list(cotangents.values()))
