"""Functions that are linear in some of their operands: how they are recognised, and their transpose.

JAX transposes a function where a solver needs its adjoint. PyTorch has no notion of a linear function, and the autograd
graph does not tell: the backward of a convolution reads the input, though a convolution is linear in it; that of `max`
does not read it. So the function is run, on random numbers of a private generator:

- it is zero at zero;
- its pullback is the same at every point, large and small;
- the pullback is the adjoint of the function: <v, f(u)> = <pull(v), u>. Where the backward is cut off, it is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from t2j_core import TransformError
from t2j_core.extend import DispatchMode, Leaf, TorchFn, apart, describe, torch_device

from . import _compat
from ._batching import Levels, batched, with_all_levels, with_batch_axes
from ._differentiate import Flat, first_line, vjp
from ._linearize import Linearized
from ._shared import Shared

_SEED = 20
_MANY, _FEW = 6, 3  # points
_OF_ILL_CONDITIONED = 0.1


class LinearFunction(Linearized):
    """A function that is linear in the operands `ins`, seen as its own derivative at zero.

    Its pushforward is the function, its pullback is its transpose. Operands `ins` of its maps are zeros.
    """

    def __init__(
        self, source: TorchFn, flat: Flat, ins: tuple[int, ...], shared: Shared, *, is_judged: bool, asked_by: str
    ) -> None:
        super().__init__(source, flat, ins, shared, keeps=False)
        self._asked_by = asked_by
        self._is_judged = is_judged  # on made-up values of the other operands
        self._is_confirmed = is_judged and len(ins) == len(self.operands)

    def map_flat(self, direction: str, ins: tuple[int, ...], outs: tuple[int, ...], levels: Levels) -> Flat:
        """As `Linearized.map_flat`. The first run judges the function on the values that the other operands have."""
        flat = self._itself(ins, outs, levels) if direction == "jvp" else super().map_flat(direction, ins, outs, levels)
        n, of_outs = len(self.operands), outs

        def run(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if not self._is_confirmed and not _compat.in_transform():
                self._confirm(a[:n], of_outs, levels)
            return flat(*a)

        return run

    def _itself(self, ins: tuple[int, ...], outs: tuple[int, ...], levels: Levels) -> Flat:
        f, n = self._over(levels), len(self.operands)

        def push(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = self._with_axes(a[:n], levels)
            for i, tangent in zip(ins, a[n:], strict=True):
                x[i] = tangent
            y = f(*x)
            return tuple(y[i] for i in outs)

        return push

    def _over(self, levels: Levels) -> Flat:
        """The function over batch axes, which all operands `ins` have; batched as derivatives are."""
        flat = self.flat
        for k, (size, dims) in enumerate(levels):
            own = tuple(0 if i in self.ins else d for i, d in enumerate(dims[: len(self.operands)]))
            leaves = [with_all_levels(leaf, levels[:k]) for leaf in self.results]
            flat = batched(flat, leaves, size, own, self.shared, is_derivative=True)
        return flat

    def _with_axes(self, x: Sequence[torch.Tensor], levels: Levels) -> list[torch.Tensor]:
        return [with_batch_axes(t, i, levels) if i in self.ins else t for i, t in enumerate(x)]

    def _confirm(self, x: Sequence[torch.Tensor], outs: tuple[int, ...], levels: Levels) -> None:
        f, shared = self._over(levels), self.shared
        results = [with_all_levels(leaf, levels) for leaf in self.results]
        points = _FEW if self._is_judged else _MANY
        x = self._with_axes([t.detach() for t in x], levels)
        with apart(shared.name):
            reason = reason_not_linear(f, x, self.ins, outs, results, points=points, least=_OF_ILL_CONDITIONED)
        if reason is not None:
            raise not_linear(shared, self.ins, reason, self._asked_by)
        self._is_confirmed = True


class Verdict(NamedTuple):
    """Whether a function is linear; None where made-up values of its other operands do not tell."""

    is_linear: bool | None
    reason: str = ""


def judged(fn: TorchFn, ins: tuple[int, ...], outs: tuple[int, ...]) -> Verdict:
    """Whether the outputs `outs` of `fn` are linear in the operands `ins`, on made-up values of the others."""
    operands, results = fn.signature.operands, fn.signature.outputs.leaves
    if not all(_is_inexact(leaf.torch_dtype) for leaf in (*(operands[i] for i in ins), *(results[i] for i in outs))):
        return Verdict(False, "PyTorch differentiates floating and complex numbers alone")
    has_others = len(ins) < len(operands)
    reasons = []
    for make in (_general, _definite) if has_others else (_general,):
        draw = _generator()
        x = [_zeros(leaf) if i in ins else make(leaf, draw) for i, leaf in enumerate(operands)]
        try:
            with apart(fn.rules.shared.name):
                reason = reason_not_linear(fn.rules.flat, x, ins, outs, results)
        except Exception as error:
            if has_others:  # made-up values need not be valid: a real call tells
                continue
            reason = f"it raises {first_line(error)}"
        if reason is None:
            return Verdict(True)
        if reason is not _NOT_FINITE or not has_others:
            reasons.append(reason)
    return Verdict(False, reasons[0]) if reasons else Verdict(None)


def not_linear(shared: Shared, ins: Sequence[int], reason: str, asked_by: str) -> TransformError:
    """The error for a function that cannot be transposed."""
    names = [shared.paths[i] if i < len(shared.paths) else f"operand {i}" for i in ins]
    return TransformError(
        describe(
            f"{asked_by} needs the transpose of {shared.name}, which is not linear in {' and '.join(names)}: {reason}.",
            expected="a function f with f(0) = 0 whose derivative is the same everywhere, and has a PyTorch backward",
            remedy="Transpose the derivative instead: `jax.vjp` is that of any function, and "
            "`jax.linearize(f, x)[1]` is linear.",
        )
    )


# --- the judgement ------------------------------------------------------------------------------------------------


class _Precision(DispatchMode):
    """Notes the relative error of the least precise dtype that was computed with, as under autocast."""

    eps = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex()):
                of_kernels = 2.0**-10 if t.is_cuda else 0.0  # TF32
                self.eps = max(self.eps, torch.finfo(t.dtype).eps, of_kernels)
        return result


_NOT_FINITE = "its pullback is not finite"


def reason_not_linear(
    f: Flat,
    x: Sequence[torch.Tensor],
    ins: Sequence[int],
    outs: Sequence[int],
    results: Sequence[Leaf],
    *,
    points: int = _MANY,
    least: float = 0.0,
) -> str | None:
    """What shows that `f` is not linear in `ins`; None if nothing does. Of `x[ins]` only shapes and dtypes matter.

    `least` is the least relative error that two sides of an equation may differ by.
    """
    draw = _generator()
    like = [x[i] for i in ins]
    cotangents = {i: _random(results[i], draw).to(x[ins[0]].device) for i in outs}
    first: Sequence[torch.Tensor] | None = None
    for number, point in zip(range(points), _points(like, draw), strict=False):
        with _Precision() as precision:
            y, pulled = _value_and_pullback(f, x, ins, point, cotangents)
        tolerance = max(math.sqrt(precision.eps), least)
        if not all(bool(g.isfinite().all()) for g in pulled):
            return _NOT_FINITE
        if number == 0 and any(bool((yi != 0).any()) for yi in y):
            return "its value at zero is not zero"
        if first is not None and not all(map(_alike, first, pulled)):
            return "its derivative differs from point to point"
        first = pulled
        if number and not _are_adjoint(y, list(cotangents.values()), pulled, point, tolerance):
            return "its derivative in PyTorch is not that of its values (detached, or computed outside PyTorch)"
    return None


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


def _generator() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(_SEED)


def _points(like: Sequence[torch.Tensor], draw: torch.Generator) -> Iterator[list[torch.Tensor]]:
    def random(scale: float) -> list[torch.Tensor]:
        return [(_normal(t.shape, t.dtype, draw) * scale).to(t.device, t.dtype) for t in like]

    largest = min(torch.finfo(t.dtype).max for t in like)
    large = 1e3 if largest > 1e6 else 10.0  # half precision
    yield [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in like]
    once = random(1.0)
    yield once
    yield random(large)
    yield [-t for t in once]
    yield random(1 / large)
    yield random(1.0)


def _normal(shape: Sequence[int], dtype: torch.dtype, draw: torch.Generator) -> torch.Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(tuple(shape), dtype=wide, generator=draw)


def _random(leaf: Leaf, draw: torch.Generator) -> torch.Tensor:
    return _normal(leaf.shape, leaf.torch_dtype, draw).to(leaf.torch_dtype)


def _zeros(leaf: Leaf) -> torch.Tensor:
    return torch.zeros(leaf.shape, dtype=leaf.torch_dtype, device=torch_device())


def _general(leaf: Leaf, draw: torch.Generator) -> torch.Tensor:
    """A made-up operand: positive numbers, a matrix that has an inverse, or indices that are valid everywhere."""
    if not _is_inexact(leaf.torch_dtype):
        return _zeros(leaf)
    if _is_square(leaf):
        n = leaf.shape[-1]
        values = _normal(leaf.shape, leaf.torch_dtype, draw) / (2 * math.sqrt(n)) + 2 * torch.eye(n)
    else:
        values = torch.rand(leaf.shape, dtype=torch.float64, generator=draw) + 0.5
    return values.to(torch_device(), leaf.torch_dtype)


def _definite(leaf: Leaf, draw: torch.Generator) -> torch.Tensor:
    """Another: a symmetric positive definite matrix, or ones."""
    values = torch.ones(leaf.shape, dtype=torch.float64)
    if _is_inexact(leaf.torch_dtype) and _is_square(leaf):
        root = _normal(leaf.shape, leaf.torch_dtype, draw)
        values = root @ root.mH / leaf.shape[-1] + torch.eye(leaf.shape[-1])
    return values.to(torch_device(), leaf.torch_dtype)


def _is_square(leaf: Leaf) -> bool:
    return len(leaf.shape) >= 2 and leaf.shape[-1] == leaf.shape[-2] > 1


def _is_inexact(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex
