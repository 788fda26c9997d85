"""Whether a function with a derivative is linear.

A linear function satisfies all of these:

- it is zero at zero;
- its pullback is the same at every point, large and small;
- its values at a point and at a power of two times that point differ by that power, to the bit but for kernels that add
  up in any order: a step beyond some threshold is small beside the values there, but not beside their rounding;
- the pullback is the adjoint of the function: <v, f(u)> = <pullback(v), u>. Where the backward is cut off, it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from t2j_core.extend import FlatFunction, Leaf

from .._derivatives.flat_functions import Tensors, are_finite
from .._derivatives.made_up_numbers import generator, normal, points
from .._derivatives.reverse_mode import vjp
from .equations import Precision, are_adjoint, are_alike, are_alike_where_finite, are_in_proportion, only
from .reasons import NOT_FINITE, NOT_IN_PROPORTION, NOT_ITS_ADJOINT, NOT_THE_SAME, NOT_ZERO

MANY, FEW = 6, 3
"""How many points are tried: all that `points` yields, or those of two sizes and both signs."""


def reason_not_linear(
    f: FlatFunction,
    x: Tensors,
    ins: Sequence[int],
    outs: Sequence[int],
    results: Sequence[Leaf],
    *,
    n_points: int = MANY,
    least: float = 0.0,
) -> str | None:
    """What shows that `f` is not linear in `ins`; None if nothing does. Of `x[ins]` only shapes and dtypes matter.

    `least` is the least relative error that two sides of an equation may differ by.
    """
    draw = generator()
    like = [x[i] for i in ins]
    cotangents = {i: normal(results[i], draw).to(x[ins[0]].device) for i in outs}
    first: Tensors | None = None
    unit: Tensors = []
    for number, (factor, point) in zip(range(n_points), points(like, draw), strict=False):
        with Precision() as precision:
            y, grads = _value_and_pullback(f, x, ins, point, cotangents)
        tolerance = max(math.sqrt(precision.relative_error), least)
        if not are_finite(grads):
            return NOT_FINITE
        if number == 0 and any(bool((yi != 0).any()) for yi in y):
            return NOT_ZERO
        if first is not None and not all(map(are_alike, first, grads)):
            return NOT_THE_SAME
        first = grads
        unit = y if factor == 1 else unit
        if factor and not are_in_proportion(y, unit, factor, precision.relative_error):
            return NOT_IN_PROPORTION
        if number and not are_adjoint(y, list(cotangents.values()), grads, point, tolerance):
            return NOT_ITS_ADJOINT
    return None


def reason_not_linear_where_finite(
    f: FlatFunction,
    x: Tensors,
    ins: Sequence[int],
    outs: Sequence[int],
    results: Sequence[Leaf],
    least: float = 0.0,
) -> str | None:
    """As `reason_not_linear` for a pullback that is not finite, such as that of a matrix with a NaN.

    Its finite elements are judged, by points that are zero elsewhere and results that are finite.
    """
    draw = generator()
    like = [x[i] for i in ins]
    cotangents = {i: normal(results[i], draw).to(x[ins[0]].device) for i in outs}
    rest = (point for _, point in points(like, draw))
    y, first = _value_and_pullback(f, x, ins, next(rest), cotangents)
    where = [g.isfinite() for g in first]
    finite = dict(zip(cotangents, (yi.isfinite() for yi in y), strict=True))
    if any(bool((yi[part] != 0).any()) for yi, part in zip(y, finite.values(), strict=True)):
        return NOT_ZERO
    kept = {i: only(v, finite[i]) for i, v in cotangents.items()}
    for point in rest:
        _, grads = _value_and_pullback(f, x, ins, point, cotangents)
        if not all(map(are_alike_where_finite, first, grads)):
            return NOT_THE_SAME
        point = list(map(only, point, where))
        with Precision() as precision:
            y, grads = _value_and_pullback(f, x, ins, point, kept)
        tolerance = max(math.sqrt(precision.relative_error), least)
        y = list(map(only, y, finite.values()))
        if not are_adjoint(y, list(kept.values()), list(map(only, grads, where)), point, tolerance):
            return NOT_ITS_ADJOINT
    return None


def _value_and_pullback(
    f: FlatFunction, x: Tensors, ins: Sequence[int], point: Tensors, cotangents: Mapping[int, torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    values: list[torch.Tensor] = []

    def noted(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = f(*a)
        values[:] = [y[i].detach() for i in cotangents]
        return y

    moved = dict(zip(ins, point, strict=True))
    grads = vjp(noted, [moved.get(i, t) for i, t in enumerate(x)], ins, cotangents)
    return values, [g.detach() for g in grads]
