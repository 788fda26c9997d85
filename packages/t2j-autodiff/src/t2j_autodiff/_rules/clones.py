"""A flat function that may write into some operands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from t2j_core.extend import FlatFunction


def clones(f: FlatFunction, indices: Sequence[int]) -> FlatFunction:
    """`f`, which may write into the operands `indices`: it gets copies of them."""
    if not indices:
        return f

    def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return f(*(t.clone() if i in indices else t for i, t in enumerate(x)))

    return run
