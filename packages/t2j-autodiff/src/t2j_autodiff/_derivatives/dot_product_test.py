"""The dot-product test: whether a pushforward and a pullback are transposes of each other.

They are if sum(g t) = sum(r dy) for tangents t, dy = pushforward(t), cotangents r and g = pullback(r).
"""

from __future__ import annotations

import math

import torch

from .flat_functions import Tensors, are_finite

Sides = tuple[Tensors, Tensors, Tensors, Tensors]
"""(g, t, r, dy) as above."""

SCALE = 1.3717421
"""A factor that is no power of two, so that scaled numbers are rounded differently."""

LARGER = 2.0**14
"""A factor for cotangents that shows whether a pullback is linear: larger than a row of a unit matrix."""

_LOOSE = 0.02


def agree(g: Tensors, t: Tensors, r: Tensors, dy: Tensors, *, loosely: bool = False) -> bool:
    """Whether sum(g t) = sum(r dy) up to rounding; `loosely` accepts 2 %.

    Sums that are not finite agree: there is nothing to compare.
    """
    if not any(bool(x.any()) for x in (*g, *dy)):
        return True
    left, right = _products(g, t), _products(r, dy)
    sums = left.sum(), right.sum()
    if not all(bool(total.isfinite()) for total in sums):
        return True
    eps = max(torch.finfo(x.dtype).eps for x in (*g, *dy))
    tolerance = max(math.sqrt(eps), 1e-6) if any(bool(d.any()) for d in dy) else 30 * eps
    if loosely:
        tolerance = max(tolerance, _LOOSE)
    scale = max(float(left.norm()), float(right.norm()))
    return bool((sums[0] - sums[1]).abs() <= tolerance * scale)


def may_be_rounding(sides: Sides, scaled: Sides) -> bool:
    """Whether `sides` differ by no more than the rounding within each of them, as in half precision under autocast.

    `scaled` are the sides for `SCALE` r and `SCALE` t: without rounding, g and dy would be `SCALE` times as large.
    """
    (g, t, r, dy), (more_g, _, _, more_dy) = sides, scaled
    left, right = _products(g, t), _products(r, dy)
    noise = (left - _products(more_g, t) / SCALE).norm() + (right - _products(r, more_dy) / SCALE).norm()
    return bool((left.sum() - right.sum()).abs() <= 10 * noise)


def is_proportional(g: Tensors, larger: Tensors, factor: float) -> bool:
    """Whether `larger`, the pullback of `factor` times a cotangent, is about `factor` times `g`, that of the cotangent.

    It is not where a hook on a tensor clamps or normalises the gradient. Numbers that are not finite count as
    proportional.
    """
    pairs = [(_wide(a), _wide(b) / factor) for a, b in zip(g, larger, strict=True)]
    difference = math.hypot(*(float((a - b).norm()) for a, b in pairs))
    size = math.hypot(*(max(float(a.norm()), float(b.norm())) for a, b in pairs))
    return not math.isfinite(difference) or difference <= _LOOSE * size


def is_telling(g: Tensors, dy: Tensors) -> bool:
    """Whether there was something to compare: finite numbers that are not all zero."""
    return any(bool(x.any()) for x in (*g, *dy)) and are_finite((*g, *dy))


def _products(a: Tensors, b: Tensors) -> torch.Tensor:
    """The real parts of all products, in double precision. For complex numbers the equation holds for these alone."""
    terms = [(_wide(x) * _wide(y)).real.flatten().cpu() for x, y in zip(a, b, strict=True)]
    return torch.cat(terms) if terms else torch.zeros(0, dtype=torch.float64)


def _wide(t: torch.Tensor) -> torch.Tensor:
    return t.detach().to(torch.complex128 if t.is_complex() else torch.float64)
