"""The order in which a function is judged: by its derivative, then by its values where the derivative is cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from t2j_core.extend import FlatFunction, Leaf

from .._derivatives.flat_functions import Tensors
from .by_derivative import MANY, reason_not_linear, reason_not_linear_where_finite
from .by_values import is_cut_off, reason_values_are_not_linear
from .reasons import NOT_FINITE, NOT_ITS_ADJOINT, NOT_ZERO

_OF_CUT_OFF = (NOT_ITS_ADJOINT, NOT_ZERO)  # what a function without a derivative shows, the second with NaN inside


@dataclass(frozen=True, eq=False)
class Judge:
    """Judges whether `f` is linear from the operands `ins` to the results `outs`, at the other operands of `x`.

    `n_points` are tried where it has a derivative. `least` is the least relative error that two sides of an equation
    may differ by.
    """

    f: FlatFunction
    x: Tensors
    ins: Sequence[int]
    outs: Sequence[int]
    results: Sequence[Leaf]
    n_points: int = MANY
    least: float = 0.0

    def reason(self, *, has_derivative: bool, finite_part_first: bool) -> tuple[str | None, bool]:
        """What shows that it is not linear, or None; and whether PyTorch has the derivative of its values.

        `has_derivative` says what earlier runs have shown of that. With `finite_part_first`, a pullback that is not
        finite is judged by its finite part at once, which may show too that the derivative is cut off.
        """
        reason = None
        if has_derivative:
            reason = reason_not_linear(
                self.f, self.x, self.ins, self.outs, self.results, n_points=self.n_points, least=self.least
            )
            if reason is NOT_FINITE and finite_part_first:
                reason = self.reason_of_finite_part()
            has_derivative = reason not in _OF_CUT_OFF or not is_cut_off(self.f, self.x, self.ins, self.outs)
        if not has_derivative:
            reason = reason_values_are_not_linear(self.f, self.x, self.ins, self.outs, least=self.least)
        return reason, has_derivative

    def reason_of_finite_part(self) -> str | None:
        """The same of the finite elements of its pullback."""
        return reason_not_linear_where_finite(self.f, self.x, self.ins, self.outs, self.results, least=self.least)
