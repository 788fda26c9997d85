"""`LinearFunction`: a function that is linear in some operands, and its transpose, which solvers of JAX need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from t2j_core import PerformanceWarning
from t2j_core.extend import FlatFunction, TorchFn, apart, transposing_call, warn

from .. import _compat
from .._batching.batch_axes import BatchAxes
from .._batching.vmap import over_axes
from .._derivatives.flat_functions import Direction, Tensors
from .._derivatives.reverse_mode import Pullback
from .._linearity.by_derivative import FEW, MANY
from .._linearity.judge import Judge
from .._linearity.reasons import NOT_FINITE
from .function_rules import axes_of_batch, rules_of
from .linear_verdict import Verdict, not_linear, verdict_on
from .linearized import Linearized
from .transpose_by_columns import COLUMNS, n_columns, too_many_columns, transposed_by_columns

_OF_ILL_CONDITIONED = 0.1  # relative error: a real matrix may be ill-conditioned, which made-up ones are not


class LinearFunction(Linearized):
    """A function that is linear in the operands `ins`, seen as its own derivative at zero.

    Its pushforward is the function, its pullback is its transpose. Operands `ins` of its maps are zeros.
    """

    def __init__(self, source: TorchFn, ins: tuple[int, ...], *, verdict: Verdict, asked_by: str) -> None:
        super().__init__(source, ins, keeps=False)
        self._asked_by = asked_by
        self._is_judged = verdict.is_linear is True  # on made-up values of the other operands
        self._has_derivative = verdict.has_derivative
        self._has_warned = False
        self._is_confirmed = self._is_judged and len(ins) == len(self.operands)
        self._is_partly_confirmed = False  # on values with which the pullback was not all finite

    def recomputing_map(
        self, direction: Direction, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes
    ) -> FlatFunction:
        """As in `Linearized`. The first run judges the function on the values that the other operands have."""
        if direction == "jvp":
            linear_map = self._itself(ins, outs, axes)
        else:
            linear_map = super().recomputing_map(direction, ins, outs, axes)
        n = len(self.operands)

        def run(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if not self._is_confirmed and not _compat.in_transform():
                self._confirm(a[:n], outs, axes)
            return linear_map(*a)

        return run

    def _itself(self, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes) -> FlatFunction:
        f, n = self._over(axes), len(self.operands)

        def pushforward(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = self._with_axes(a[:n], axes)
            for i, t in zip(ins, a[n:], strict=True):
                x[i] = t
            y = f(*x)
            return tuple(y[i] for i in outs)

        return pushforward

    def _over(self, axes: BatchAxes) -> FlatFunction:
        """The function over batch axes, which all operands `ins` have; batched as derivatives are."""
        axes = axes.of_first(len(self.operands)).filled(self.ins)
        return over_axes(self.flat_function, self.results, axes, self.decisions, "derivative")

    def _with_axes(self, x: Sequence[torch.Tensor], axes: BatchAxes) -> list[torch.Tensor]:
        return [axes.expanded(t, i) if i in self.ins else t for i, t in enumerate(x)]

    def _confirm(self, x: Sequence[torch.Tensor], outs: tuple[int, ...], axes: BatchAxes) -> None:
        """Judge the function on real values of the other operands.

        Unlike made-up values, they may be ill-conditioned. Few points are enough if made-up values have shown that the
        function is linear. If a pullback is not finite, the run has diverged, and JAX's result is not finite either:
        then the derivative does not count as cut off, and the finite part is judged once.
        """
        results = [axes.of_result(leaf) for leaf in self.results]
        x = self._with_axes([t.detach() for t in x], axes)
        n_points = FEW if self._is_judged else MANY
        judge = Judge(self._over(axes), x, self.ins, outs, results, n_points, _OF_ILL_CONDITIONED)
        with apart(self.decisions.name):
            reason, self._has_derivative = judge.reason(has_derivative=self._has_derivative, finite_part_first=False)
            is_finite = reason is not NOT_FINITE
            if not is_finite:
                if self._is_partly_confirmed:
                    return
                reason = judge.reason_of_finite_part() if self._has_derivative else None
        if reason is not None:
            raise not_linear(self.decisions, self.ins, reason, self._asked_by)
        self._is_confirmed, self._is_partly_confirmed = is_finite, True

    def pullback(self) -> Pullback:
        """The transpose: PyTorch's pullback, or the columns of a function without one."""
        vjp, (example, axes) = super().pullback(), axes_of_batch(self.source)

        def pullback(x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor]) -> Tensors:
            if self._has_derivative:
                return vjp(x, ins, cotangents)
            self._check_columns(example)
            return transposed_by_columns(self.flat_function, x, ins, cotangents, axes)

        return pullback

    def _check_columns(self, example: TorchFn) -> None:
        """Raise if there are too many columns. Called when the transpose runs: solvers trace some that never run."""
        count = n_columns([example.signature.operands[i] for i in self.ins])
        if count > COLUMNS:
            raise too_many_columns(self.decisions, self.ins, count)
        if not self._has_warned:
            self._has_warned = True
            warn(
                f"PyTorch has no derivative of {self.decisions.name} (NumPy, `no_grad`, `detach`), so its transpose "
                f"comes from {count} runs of the function. Write it in PyTorch operations that record gradients.",
                PerformanceWarning,
            )

    def _like(self, fn: TorchFn, outs: tuple[int, ...]) -> Linearized:
        return as_linear(fn, self.ins, outs)


def as_linear(fn: TorchFn, ins: tuple[int, ...], outs: tuple[int, ...]) -> LinearFunction:
    """`fn` as a function that is linear in the operands `ins`. Raises `TransformError` if it is not."""
    rules = rules_of(fn)
    verdict = verdict_on(rules.unbatched or fn, ins, outs)
    asked_by = transposing_call()
    if verdict.is_linear is False:
        raise not_linear(rules.decisions, ins, verdict.reason, asked_by)
    found: LinearFunction = rules.memo.get(
        ("linear", ins, outs), lambda: LinearFunction(fn, ins, verdict=verdict, asked_by=asked_by)
    )
    return found
