"""No residuals: a backward runs the forward again."""

from __future__ import annotations

from .._batching.batch_axes import BatchAxes
from .._derivatives.flat_functions import Flat
from .protocol import Residuals


class Recompute(Residuals):
    """Keeps nothing."""

    def forward(self, value: Flat, to_record: Flat, axes: BatchAxes) -> Flat:
        """The value alone."""
        return value

    def pullback(self, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes, recompute: Flat) -> Flat:
        """The pullback that runs the forward again."""
        return recompute

    def pushforward(self, recompute: Flat) -> Flat:
        """The pushforward as it is."""
        return recompute
