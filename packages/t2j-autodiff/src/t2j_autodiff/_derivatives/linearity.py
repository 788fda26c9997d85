"""Whether a function is linear in some of its operands, found out by running it.

PyTorch has no notion of a linear function, and the autograd graph does not tell: the backward of a convolution reads
the input, though a convolution is linear in it; that of `max` does not read it. So the function is run, on random
numbers of a private generator:

- it is zero at zero;
- its pullback is the same at every point, large and small;
- its values at a point and at a power of two times that point differ by that power, to the bit but for kernels that add
  up in any order: a step beyond some threshold is small beside the values there, but not beside their rounding;
- the pullback is the adjoint of the function: <v, f(u)> = <pull(v), u>. Where the backward is cut off, it is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from t2j_core.extend import DispatchMode, Leaf, torch_device

from .reverse_mode import Flat, vjp

_SEED = 20
MANY, FEW = 6, 3  # points


class Precision(DispatchMode):
    """Notes the relative error of the least precise dtype that was computed with, as under autocast."""

    eps = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self.operate(func, args, kwargs)
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex()):
                of_kernels = 2.0**-10 if t.is_cuda else 0.0  # TF32
                self.eps = max(self.eps, torch.finfo(t.dtype).eps, of_kernels)
        return result


NOT_FINITE = "its pullback is not finite"
NOT_ZERO = "its value at zero is not zero"
NOT_THE_SAME = "its derivative differs from point to point"
NOT_ITS_ADJOINT = "its derivative in PyTorch is not that of its values"
NOT_IN_PROPORTION = "its values do not grow in proportion to its operands"


def reason_not_linear(
    f: Flat,
    x: Sequence[torch.Tensor],
    ins: Sequence[int],
    outs: Sequence[int],
    results: Sequence[Leaf],
    *,
    points: int = MANY,
    least: float = 0.0,
) -> str | None:
    """What shows that `f` is not linear in `ins`; None if nothing does. Of `x[ins]` only shapes and dtypes matter.

    `least` is the least relative error that two sides of an equation may differ by.
    """
    draw = generator()
    like = [x[i] for i in ins]
    cotangents = {i: _random(results[i], draw).to(x[ins[0]].device) for i in outs}
    first: Sequence[torch.Tensor] | None = None
    unit: list[torch.Tensor] = []
    for number, (factor, point) in zip(range(points), at_points(like, draw), strict=False):
        with Precision() as precision:
            y, pulled = _value_and_pullback(f, x, ins, point, cotangents)
        tolerance = max(math.sqrt(precision.eps), least)
        if not all(bool(g.isfinite().all()) for g in pulled):
            return NOT_FINITE
        if number == 0 and any(bool((yi != 0).any()) for yi in y):
            return NOT_ZERO
        if first is not None and not all(map(_alike, first, pulled)):
            return NOT_THE_SAME
        first = pulled
        unit = y if factor == 1 else unit
        if factor and not are_in_proportion(y, unit, factor, precision.eps):
            return NOT_IN_PROPORTION
        if number and not _are_adjoint(y, list(cotangents.values()), pulled, point, tolerance):
            return NOT_ITS_ADJOINT
    return None


def reason_not_linear_where_finite(
    f: Flat,
    x: Sequence[torch.Tensor],
    ins: Sequence[int],
    outs: Sequence[int],
    results: Sequence[Leaf],
    least: float = 0.0,
) -> str | None:
    """As `reason_not_linear` for a pullback that is not finite, as of a matrix with a NaN: of its finite elements.

    The equation is that of what they are computed from: points that are zero elsewhere, and results that are finite.
    """
    draw = generator()
    like = [x[i] for i in ins]
    cotangents = {i: _random(results[i], draw).to(x[ins[0]].device) for i in outs}
    points = (point for _, point in at_points(like, draw))
    y, first = _value_and_pullback(f, x, ins, next(points), cotangents)
    where = [g.isfinite() for g in first]
    finite = dict(zip(cotangents, (yi.isfinite() for yi in y), strict=True))
    if any(bool((yi[part] != 0).any()) for yi, part in zip(y, finite.values(), strict=True)):
        return NOT_ZERO
    kept = {i: _only(v, finite[i]) for i, v in cotangents.items()}
    for point in points:
        _, pulled = _value_and_pullback(f, x, ins, point, cotangents)
        if not all(map(_alike_where_finite, first, pulled)):
            return NOT_THE_SAME
        point = list(map(_only, point, where))
        with Precision() as precision:
            y, pulled = _value_and_pullback(f, x, ins, point, kept)
        tolerance = max(math.sqrt(precision.eps), least)
        y = list(map(_only, y, finite.values()))
        if not _are_adjoint(y, list(kept.values()), list(map(_only, pulled, where)), point, tolerance):
            return NOT_ITS_ADJOINT
    return None


def _only(a: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return torch.where(where, a, torch.zeros_like(a))


def _alike_where_finite(a: torch.Tensor, b: torch.Tensor) -> bool:
    where = a.isfinite()
    return torch.equal(where, b.isfinite()) and _alike(_only(a, where), _only(b, where))


def _value_and_pullback(
    f: Flat, x: Sequence[torch.Tensor], ins: Sequence[int], point: Sequence[torch.Tensor], cotangents: Any
) -> tuple[list[torch.Tensor], Sequence[torch.Tensor]]:
    values: list[torch.Tensor] = []

    def watched(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = f(*a)
        values[:] = [y[i].detach() for i in cotangents]
        return y

    moved = dict(zip(ins, point, strict=True))
    pulled = vjp(watched, [moved.get(i, t) for i, t in enumerate(x)], ins, cotangents)
    return values, [g.detach() for g in pulled]


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two pullbacks of one cotangent are the same: to the bit, unless kernels add up in any order."""
    if a.device.type == "cpu":
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()) if a.numel() else 0.0)


def are_in_proportion(y: Sequence[torch.Tensor], unit: Sequence[torch.Tensor], factor: float, eps: float) -> bool:
    """Whether the values `y` are `factor` times `unit`, where both are finite. A power of two changes no rounding."""
    tolerance = min(256 * eps, math.sqrt(eps))
    for a, b in zip(y, unit, strict=True):
        b = b * factor
        difference = _only(a - b, a.isfinite() & b.isfinite()).abs()
        size = _only(b, b.isfinite()).abs()
        if b.numel() and float(difference.max()) > tolerance * float(size.max()):
            return False
    return True


def _are_adjoint(y: Any, v: Any, pulled: Any, point: Any, tolerance: float) -> bool:
    """Whether <v, y> = <pulled, point>, real parts, with respect to the size of the terms."""
    left, right = ([_terms(a, b) for a, b in zip(p, q, strict=True)] for p, q in ((v, y), (pulled, point)))
    size = math.sqrt(sum(float(t.square().sum()) for t in (*left, *right)))
    difference = sum(float(t.sum()) for t in left) - sum(float(t.sum()) for t in right)
    return not math.isfinite(size) or abs(difference) <= tolerance * size


def _terms(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.is_complex() or b.is_complex():
        return (a.to(torch.complex128) * b.to(torch.complex128)).real
    return a.to(torch.float64) * b.to(torch.float64)


# --- numbers ------------------------------------------------------------------------------------------------------


def generator() -> torch.Generator:
    """A generator of its own: torch's default one stays as it is."""
    return torch.Generator("cpu").manual_seed(_SEED)


def at_points(like: Sequence[torch.Tensor], draw: torch.Generator) -> Iterator[tuple[float, list[torch.Tensor]]]:
    """Points to try: (factor, factor times the point of factor 1), or (0, a point of its own), which is zero at first.

    The first three are of both signs and two sizes.
    """

    def random() -> list[torch.Tensor]:
        return [_normal(t.shape, t.dtype, draw).to(t.device, t.dtype) for t in like]

    largest = min(torch.finfo(t.dtype).max for t in like)
    large = 1024.0 if largest > 1e6 else 8.0  # half precision
    yield 0.0, [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in like]
    once = random()
    for factor in (1.0, -large, large, 1 / large):
        yield factor, [factor * t for t in once]
    yield 0.0, random()


def _normal(shape: Sequence[int], dtype: torch.dtype, draw: torch.Generator) -> torch.Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(tuple(shape), dtype=wide, generator=draw)


def _random(leaf: Leaf, draw: torch.Generator) -> torch.Tensor:
    return _normal(leaf.shape, leaf.torch_dtype, draw).to(leaf.torch_dtype)


def zeros(leaf: Leaf) -> torch.Tensor:
    """An operand of zeros."""
    return torch.zeros(leaf.shape, dtype=leaf.torch_dtype, device=torch_device())


def general(leaf: Leaf, draw: torch.Generator) -> torch.Tensor:
    """A made-up operand: positive numbers, a matrix that has an inverse, or indices that are valid everywhere."""
    if not is_inexact(leaf.torch_dtype):
        return zeros(leaf)
    if _is_square(leaf):
        n = leaf.shape[-1]
        values = _normal(leaf.shape, leaf.torch_dtype, draw) / (2 * math.sqrt(n)) + 2 * torch.eye(n)
    else:
        values = torch.rand(leaf.shape, dtype=torch.float64, generator=draw) + 0.5
    return values.to(torch_device(), leaf.torch_dtype)


def definite(leaf: Leaf, draw: torch.Generator) -> torch.Tensor:
    """Another: a symmetric positive definite matrix, or ones."""
    values = torch.ones(leaf.shape, dtype=torch.float64)
    if is_inexact(leaf.torch_dtype) and _is_square(leaf):
        root = _normal(leaf.shape, leaf.torch_dtype, draw)
        values = root @ root.mH / leaf.shape[-1] + torch.eye(leaf.shape[-1])
    return values.to(torch_device(), leaf.torch_dtype)


def _is_square(leaf: Leaf) -> bool:
    return len(leaf.shape) >= 2 and leaf.shape[-1] == leaf.shape[-2] > 1


def is_inexact(dtype: torch.dtype) -> bool:
    """Whether PyTorch differentiates numbers of this dtype."""
    return dtype.is_floating_point or dtype.is_complex
