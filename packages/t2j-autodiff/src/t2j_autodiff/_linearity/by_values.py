"""Whether a function without a derivative in PyTorch is linear: NumPy, SciPy, `torch.no_grad`, `detach`.

Its values are compared: at zero, at multiples of a point, at the sum of two points, and at the same point once more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from t2j_core.extend import FlatFunction

from .. import _compat
from .._derivatives.flat_functions import Tensors, are_finite, requiring_grad
from .._derivatives.made_up_numbers import generator, points
from .equations import Precision, adds_up, are_in_proportion
from .reasons import NOT_ADDITIVE, NOT_FINITE, NOT_IN_PROPORTION, NOT_REPEATABLE, NOT_ZERO


def is_cut_off(f: FlatFunction, x: Tensors, ins: Sequence[int], outs: Sequence[int]) -> bool:
    """Whether a derivative that is not that of the values is an accident.

    That of an `autograd.Function` is its author's choice.
    """
    with torch.enable_grad():
        y = f(*requiring_grad([t.detach() for t in x], ins))
    return not _compat.has_function(y[i] for i in outs)


def reason_values_are_not_linear(
    f: FlatFunction, x: Tensors, ins: Sequence[int], outs: Sequence[int], *, least: float = 0.0
) -> str | None:
    """What shows that the finite values of `f` are not linear in `ins`; `NOT_FINITE` if some values are not finite.

    `least` is the least relative error that two sides of an equation may differ by.
    """

    def at(point: Tensors) -> list[torch.Tensor]:
        moved = dict(zip(ins, point, strict=True))
        y = f(*(moved.get(i, t) for i, t in enumerate(x)))
        return [y[i].detach() for i in outs]

    (_, zero), (_, one), *multiples, (_, other) = points([x[i] for i in ins], generator())
    with Precision() as precision:
        nothing, a, b = at(zero), at(one), at(other)
        both = at([p + q for p, q in zip(one, other, strict=True)])
    if any(bool(((y != 0) & ~y.isnan()).any()) for y in nothing):
        return NOT_ZERO
    if not are_in_proportion(at(one), a, 1, precision.relative_error):
        return NOT_REPEATABLE
    for factor, point in multiples:
        if not are_in_proportion(at(point), a, factor, precision.relative_error):
            return NOT_IN_PROPORTION
    # What runs outside PyTorch may compute in single precision.
    tolerance = max(math.sqrt(max(precision.relative_error, torch.finfo(torch.float32).eps)), least)
    if not all(adds_up(*values, tolerance) for values in zip(a, b, both, strict=True)):
        return NOT_ADDITIVE
    return None if are_finite((*nothing, *a)) else NOT_FINITE
