"""Functions that are linear by their values and have no derivative in PyTorch: NumPy, SciPy, `torch.no_grad`, `detach`.

Their transpose comes from the columns of their matrix, each of which takes one run of the function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import _compat
from .._batching.batch_axes import BatchAxes
from .._derivatives.linearity import (
    NOT_FINITE,
    NOT_IN_PROPORTION,
    NOT_ZERO,
    Precision,
    are_in_proportion,
    at_points,
    generator,
)
from .._derivatives.reverse_mode import Flat, Tensors, watched

COLUMNS = 256
"""How many columns of a matrix are computed at most, for the transpose of one call."""

NOT_ADDITIVE = "its value at a sum is not the sum of its values"
NOT_REPEATABLE = "its values differ from run to run"


def is_cut_off(f: Flat, x: Tensors, ins: Sequence[int], outs: Sequence[int]) -> bool:
    """Whether a derivative that is not that of the values is nobody's choice, as that of an `autograd.Function` is."""
    with torch.enable_grad():
        y = f(*watched([t.detach() for t in x], ins))
    return not _compat.has_function(y[i] for i in outs)


def reason_values_are_not_linear(
    f: Flat, x: Tensors, ins: Sequence[int], outs: Sequence[int], *, least: float = 0.0
) -> str | None:
    """What shows that the finite values of `f` are not linear in `ins`; `NOT_FINITE` if nothing but that some are not.

    `least` is the least relative error that two sides of an equation may differ by.
    """

    def at(point: Tensors) -> list[torch.Tensor]:
        moved = dict(zip(ins, point, strict=True))
        y = f(*(moved.get(i, t) for i, t in enumerate(x)))
        return [y[i].detach() for i in outs]

    (_, zero), (_, one), *multiples, (_, other) = at_points([x[i] for i in ins], generator())
    with Precision() as precision:
        nothing, a, b = at(zero), at(one), at(other)
        both = at([p + q for p, q in zip(one, other, strict=True)])
    if any(bool(((y != 0) & ~y.isnan()).any()) for y in nothing):
        return NOT_ZERO
    if not are_in_proportion(at(one), a, 1, precision.eps):
        return NOT_REPEATABLE
    for factor, point in multiples:
        if not are_in_proportion(at(point), a, factor, precision.eps):
            return NOT_IN_PROPORTION
    # What is computed outside PyTorch may be computed in single precision.
    tolerance = max(math.sqrt(max(precision.eps, torch.finfo(torch.float32).eps)), least)
    if not all(_adds_up(*values, tolerance) for values in zip(a, b, both, strict=True)):
        return NOT_ADDITIVE
    return None if all(bool(y.isfinite().all()) for y in (*nothing, *a)) else NOT_FINITE


def _adds_up(a: torch.Tensor, b: torch.Tensor, both: torch.Tensor, tolerance: float) -> bool:
    where = a.isfinite() & b.isfinite() & both.isfinite()
    a, b, both = a[where], b[where], both[where]
    return not a.numel() or float((both - a - b).abs().max()) <= tolerance * float((a.abs() + b.abs()).max())


def n_columns(like: Sequence[Any]) -> int:
    """How many runs the transpose takes for linear operands of these shapes and dtypes."""
    return sum(math.prod(t.shape) * (1 + t.torch_dtype.is_complex) for t in like)


def transposed_by_columns(
    f: Flat, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor], axes: BatchAxes
) -> tuple[torch.Tensor, ...]:
    """The transpose of `f`, a function over the batch axes `axes`, each example of which moves on its own."""
    x = [torch.zeros_like(t) if i in ins else t for i, t in enumerate(x)]

    def product(i: int, direction: torch.Tensor) -> torch.Tensor:
        """The sum of cotangent times column, for each example."""
        y = f(*x[:i], direction.expand(x[i].shape).clone(), *x[i + 1 :])
        terms = [(ct.to(y[o].dtype) * y[o]).flatten(len(axes)).sum(-1) for o, ct in cotangents.items()]
        return torch.stack([t.real if t.is_complex() else t for t in terms]).sum(0)

    return tuple(_pulled(lambda direction, i=i: product(i, direction), x[i], i, axes) for i in ins)


def _pulled(product: Any, like: torch.Tensor, i: int, axes: BatchAxes) -> torch.Tensor:
    """The cotangent of operand `i`. Only the real part of sum(g t) = sum(r dy) holds for complex numbers."""
    has_axis = [axis.has(i) for axis in axes]
    lacking = [k for k, has in enumerate(has_axis) if not has]
    shape = like.shape[sum(has_axis) :]

    def column(j: int, weight: Any) -> torch.Tensor:
        direction = torch.zeros(math.prod(shape), dtype=like.dtype, device=like.device)
        direction[j] = weight
        products = product(direction.view(shape))
        return products.sum(lacking) if lacking else products

    columns = [column(j, 1) for j in range(math.prod(shape))]
    if like.is_complex():
        columns = [torch.complex(real, -column(j, 1j)) for j, real in enumerate(columns)]
    if not columns:
        return torch.zeros_like(like)
    return torch.stack(columns, -1).view(like.shape).to(like.dtype)
