"""No residuals: a backward runs the forward again."""

from __future__ import annotations

from t2j_core.extend import FlatFunction

from .._batching.batch_axes import BatchAxes
from .protocol import Residuals


class Recompute(Residuals):
    """The way without residuals."""

    def forward(self, value: FlatFunction, to_record: FlatFunction, axes: BatchAxes) -> FlatFunction:
        """The value alone."""
        return value

    def pullback(
        self, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes, recompute: FlatFunction
    ) -> FlatFunction:
        """The pullback that runs the forward again."""
        return recompute
