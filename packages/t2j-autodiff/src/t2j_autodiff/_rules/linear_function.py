"""Functions that are linear in some of their operands, and their transpose: what a solver of JAX's needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from t2j_core import PerformanceWarning, TransformError
from t2j_core.extend import TorchFn, apart, describe, transposing_call, warn

from .. import _compat
from .._base.decisions import Shared
from .._batching.batch_axes import NO_AXES, BatchAxes, BatchAxis
from .._batching.vmap import over_axes
from .._derivatives.linearity import (
    FEW,
    MANY,
    NOT_FINITE,
    NOT_ITS_ADJOINT,
    NOT_ZERO,
    definite,
    general,
    generator,
    is_inexact,
    reason_not_linear,
    reason_not_linear_where_finite,
    zeros,
)
from .._derivatives.pushforward import Pull
from .._derivatives.reverse_mode import Flat, Tensors, first_line
from .function_rules import rules_of
from .linearize import Linearized
from .values_alone import COLUMNS, is_cut_off, n_columns, reason_values_are_not_linear, transposed_by_columns

_OF_ILL_CONDITIONED = 0.1
_OF_CUT_OFF = (NOT_ITS_ADJOINT, NOT_ZERO)  # what a function without a derivative shows, the second with NaN inside


class LinearFunction(Linearized):
    """A function that is linear in the operands `ins`, seen as its own derivative at zero.

    Its pushforward is the function, its pullback is its transpose. Operands `ins` of its maps are zeros.
    """

    def __init__(self, source: TorchFn, ins: tuple[int, ...], *, verdict: Verdict, asked_by: str) -> None:
        super().__init__(source, ins, keeps=False)
        self._asked_by = asked_by
        self._is_judged = is_judged = verdict.is_linear is True  # on made-up values of the other operands
        self._has_derivative = verdict.has_derivative
        self._is_slow_told = False
        self._is_confirmed = is_judged and len(ins) == len(self.operands)
        self._is_partly_confirmed = False  # on values with which the pullback was not all finite

    def recomputing_map(self, direction: str, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes) -> Flat:
        """As of `Linearized`. The first run judges the function on the values that the other operands have."""
        if direction == "jvp":
            linear_map = self._itself(ins, outs, axes)
        else:
            linear_map = super().recomputing_map(direction, ins, outs, axes)
        n, of_outs = len(self.operands), outs

        def run(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if not self._is_confirmed and not _compat.in_transform():
                self._confirm(a[:n], of_outs, axes)
            return linear_map(*a)

        return run

    def _itself(self, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes) -> Flat:
        f, n = self._over(axes), len(self.operands)

        def pushforward(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = self._with_axes(a[:n], axes)
            for i, tangent in zip(ins, a[n:], strict=True):
                x[i] = tangent
            y = f(*x)
            return tuple(y[i] for i in outs)

        return pushforward

    def _over(self, axes: BatchAxes) -> Flat:
        """The function over batch axes, which all operands `ins` have; batched as derivatives are."""
        axes = axes.of_first(len(self.operands)).filled(self.ins)
        return over_axes(self.flat_function, self.results, axes, self.shared, is_derivative=True)

    def _with_axes(self, x: Sequence[torch.Tensor], axes: BatchAxes) -> list[torch.Tensor]:
        return [axes.expanded(t, i) if i in self.ins else t for i, t in enumerate(x)]

    def _confirm(self, x: Sequence[torch.Tensor], outs: tuple[int, ...], axes: BatchAxes) -> None:
        f, shared = self._over(axes), self.shared
        results = [axes.of_result(leaf) for leaf in self.results]
        points = FEW if self._is_judged else MANY
        x = self._with_axes([t.detach() for t in x], axes)
        with apart(shared.name):
            if self._has_derivative:
                reason = reason_not_linear(f, x, self.ins, outs, results, points=points, least=_OF_ILL_CONDITIONED)
                self._has_derivative = reason not in _OF_CUT_OFF or not is_cut_off(f, x, self.ins, outs)
            if not self._has_derivative:
                reason = reason_values_are_not_linear(f, x, self.ins, outs, least=_OF_ILL_CONDITIONED)
            is_finite = reason is not NOT_FINITE
            if not is_finite:  # a diverged run: JAX's result is not finite either
                if self._is_partly_confirmed:
                    return
                reason = None
                if self._has_derivative:
                    reason = reason_not_linear_where_finite(f, x, self.ins, outs, results, least=_OF_ILL_CONDITIONED)
        if reason is not None:
            raise not_linear(shared, self.ins, reason, self._asked_by)
        self._is_confirmed, self._is_partly_confirmed = is_finite, True

    def pullback(self) -> Pull:
        """The transpose: PyTorch's pullback, or the columns of a function without one."""
        vjp, (example, axes) = super().pullback(), _batch_of(self.source)

        def pullback(x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor]) -> Tensors:
            if self._has_derivative:
                return vjp(x, ins, cotangents)
            self._check_columns(example)
            return transposed_by_columns(self.flat_function, x, ins, cotangents, axes)

        return pullback

    def _check_columns(self, example: TorchFn) -> None:
        """Raise where the columns are too many. Solvers trace a transpose that they may never run."""
        count = n_columns([example.signature.operands[i] for i in self.ins])
        if count > COLUMNS:
            raise _no_transpose(self.shared, self.ins, count)
        if not self._is_slow_told:
            self._is_slow_told = True
            warn(
                f"PyTorch has no derivative of {self.shared.name} (NumPy, `no_grad`, `detach`), so its transpose comes "
                f"from {count} runs of the function. Write it in PyTorch operations that record gradients.",
                PerformanceWarning,
            )

    def _like(self, fn: TorchFn, outs: tuple[int, ...]) -> Linearized:
        return as_linear(fn, self.ins, outs)


def as_linear(fn: TorchFn, ins: tuple[int, ...], outs: tuple[int, ...]) -> LinearFunction:
    """`fn` as a function that is linear in the inputs `ins`. Raises `TransformError` if it is not."""
    rules = rules_of(fn)
    verdict = verdict_on(rules.unbatched or fn, ins, outs)
    asked_by = transposing_call()
    if verdict.is_linear is False:
        raise not_linear(rules.shared, ins, verdict.reason, asked_by)
    found: LinearFunction = rules.memo.get(
        ("linear", ins, outs), lambda: LinearFunction(fn, ins, verdict=verdict, asked_by=asked_by)
    )
    return found


def _batch_of(fn: TorchFn) -> tuple[TorchFn, BatchAxes]:
    """What a function is a batch of, and along which axes."""
    axes = NO_AXES
    while (batch := rules_of(fn).batch_of) is not None:
        fn, size, dims = batch
        axes = BatchAxes((*axes, BatchAxis(size, dims)))
    return fn, axes


class Verdict(NamedTuple):
    """Whether a function is linear; None where made-up values of its other operands do not tell."""

    is_linear: bool | None
    reason: str = ""
    has_derivative: bool = True  # PyTorch has that of its values


def verdict_on(fn: TorchFn, ins: tuple[int, ...], outs: tuple[int, ...]) -> Verdict:
    """Whether the outputs `outs` of `fn` are linear in the operands `ins`, found out once."""
    found: Verdict = rules_of(fn).memo.get(("verdict", ins, outs), lambda: judged(fn, ins, outs))
    return found


def judged(fn: TorchFn, ins: tuple[int, ...], outs: tuple[int, ...]) -> Verdict:
    """Whether the outputs `outs` of `fn` are linear in the operands `ins`, on made-up values of the others."""
    operands, results, rules = fn.signature.operands, fn.signature.outputs.leaves, rules_of(fn)
    f = rules.flat_function
    if not all(is_inexact(leaf.torch_dtype) for leaf in (*(operands[i] for i in ins), *(results[i] for i in outs))):
        return Verdict(False, "PyTorch differentiates floating and complex numbers alone")
    has_others = len(ins) < len(operands)
    reasons = []
    for make in (general, definite) if has_others else (general,):
        draw = generator()
        x = [zeros(leaf) if i in ins else make(leaf, draw) for i, leaf in enumerate(operands)]
        try:
            with apart(rules.shared.name):
                reason = reason_not_linear(f, x, ins, outs, results)
                if reason is NOT_FINITE and not has_others:
                    reason = reason_not_linear_where_finite(f, x, ins, outs, results)
                is_known = reason not in _OF_CUT_OFF or not is_cut_off(f, x, ins, outs)
                if not is_known:
                    reason = reason_values_are_not_linear(f, x, ins, outs)
                    reason = None if reason is NOT_FINITE and not has_others else reason
        except Exception as error:
            if has_others:  # made-up values need not be valid: a real call tells
                continue
            reason, is_known = f"it raises {first_line(error)}", True
        if reason is None:
            return Verdict(True, has_derivative=is_known)
        if reason is not NOT_FINITE:
            reasons.append(reason)
    return Verdict(False, reasons[0]) if reasons else Verdict(None)


def not_linear(shared: Shared, ins: Sequence[int], reason: str, asked_by: str) -> TransformError:
    """The error for a function that cannot be transposed."""
    says = "whose backward says that it is" if reason is NOT_ITS_ADJOINT else "which is"
    return TransformError(
        describe(
            f"{asked_by} needs the transpose of {shared.name}, {says} not linear in {_names(shared, ins)}: {reason}.",
            expected="a function f with f(0) = 0 whose derivative is the same everywhere, and has a PyTorch backward",
            remedy="Transpose the derivative instead: `jax.vjp` is that of any function, and "
            "`jax.linearize(f, x)[1]` is linear.",
        )
    )


def _no_transpose(shared: Shared, ins: Sequence[int], count: int) -> TransformError:
    return TransformError(
        describe(
            f"{shared.name} cannot be transposed: it is linear in {_names(shared, ins)} as far as its values tell, but "
            "PyTorch has no derivative of it (NumPy, `no_grad`, `detach`).",
            expected=f"a derivative, or at most {COLUMNS} numbers that it is linear in",
            got=f"{count} numbers",
            remedy="Write it in PyTorch operations that record gradients, or as an `autograd.Function` whose backward "
            "is the transpose.",
        )
    )


def _names(shared: Shared, ins: Sequence[int]) -> str:
    return " and ".join(shared.paths[i] if i < len(shared.paths) else f"operand {i}" for i in ins)
