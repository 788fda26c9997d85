"""The first example of a batch of pushforwards, run alone: inside `torch.func.vmap` no tangent can be compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from t2j_core.extend import FlatFunction

from .. import _compat
from .._base.errors import OUT_OF_MEMORY
from .._derivatives.jvp_decision import JvpDecision
from .batch_axes import BatchAxes


def rehearsed(
    f: FlatFunction, alone: Callable[..., None], n: int, axes: BatchAxes, decision: JvpDecision
) -> FlatFunction:
    """`f`, a batch of pushforwards. Until `decision` is settled, `alone` is called with one example first.

    The first `n` arguments are operands; the others are tangents, which have all batch axes.
    """

    def run(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not (decision.is_settled or _compat.in_transform() or 0 in axes.sizes):
            operands = [_first(t, sum(axis.has(i) for axis in axes)) for i, t in enumerate(a[:n])]
            with contextlib.suppress(*OUT_OF_MEMORY):
                alone(*operands, *(_first(t, len(axes)) for t in a[n:]))
        return f(*a)

    return run if axes else f


def _first(t: torch.Tensor, n_axes: int) -> torch.Tensor:
    # A copy, not a view: some operations ignore `storage_offset` and read from the start of the memory.
    return t[(0,) * n_axes].clone() if n_axes else t
