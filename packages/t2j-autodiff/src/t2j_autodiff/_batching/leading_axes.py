"""`vmap_method="expand_dims"` and `"broadcast_all"`: functions that take their batch axes themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from t2j_core.extend import FlatFunction, Leaf

from .._base.decisions import Decisions
from .batch_axes import BatchAxes, Dims


class LeadingAxes:
    """A function that takes its batch axes itself, in front of the axes of an example."""

    def __init__(
        self, f: FlatFunction, axes: BatchAxes, results: Sequence[Leaf], decisions: Decisions, *, expand: bool
    ) -> None:
        self.f = f
        self.decisions = decisions
        self.axes = axes
        self.results = results
        self.expand = expand  # axes that an operand lacks; otherwise they are of size 1

    def __call__(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes = self.axes.sizes
        if 0 in sizes:
            return zeros_of(self.results, sizes, x[0].device)
        method = self.decisions.options.vmap_method
        for size in sizes:
            self.decisions.explain_batch("value", size, f'the function takes the axis (`vmap_method="{method}"`)')
        n = len(sizes)
        with_axes = self.axes.expanded if self.expand else self.axes.unsqueezed
        rows = (with_axes(t, i) for i, t in enumerate(x))
        fits = lambda y: y.dim() >= n and all(have in (1, size) for have, size in zip(y.shape, sizes, strict=False))
        return tuple(y.expand(*sizes, *y.shape[n:]) if fits(y) else y for y in self.f(*rows))

    def over(self, size: int, dims: Dims) -> LeadingAxes:
        """The function with one more batch axis, outside the others."""
        return LeadingAxes(self.f, self.axes.within(size, dims), self.results, self.decisions, expand=self.expand)


def zeros_of(results: Sequence[Leaf], sizes: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """The results of a batch without examples."""
    return tuple(torch.zeros((*sizes, *leaf.shape), dtype=leaf.torch_dtype, device=device) for leaf in results)
