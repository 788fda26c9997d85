"""The first example of a batch of pushforwards, run alone: inside `torch.func.vmap` no tangent can be compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from .. import _compat
from .._base.errors import OUT_OF_MEMORY
from .._derivatives.forward_mode import ForwardMode
from .._derivatives.reverse_mode import Flat
from .batch_axes import Levels


def rehearsed(f: Flat, alone: Callable[..., None], n: int, levels: Levels, known: ForwardMode) -> Flat:
    """`f`, a batch of pushforwards. As long as it is not known how they go, `alone` is called with one example.

    The first `n` operands have the axes that `levels` tells, the tangents have all.
    """

    def run(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not (known.is_settled or _compat.in_transform() or any(size == 0 for size, _ in levels)):
            operands = [_first(t, sum(dims[i] is not None for _, dims in levels)) for i, t in enumerate(a[:n])]
            with contextlib.suppress(*OUT_OF_MEMORY):
                alone(*operands, *(_first(t, len(levels)) for t in a[n:]))
        return f(*a)

    return run if levels else f


def _first(t: torch.Tensor, axes: int) -> torch.Tensor:
    # Of its own memory, not a view: some operations read the memory from its beginning.
    return t[(0,) * axes].clone() if axes else t
