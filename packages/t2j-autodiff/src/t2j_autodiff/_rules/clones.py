"""A flat function that may write into some operands."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._derivatives.flat_functions import Flat


def clones(f: Flat, indices: Sequence[int]) -> Flat:
    """`f`, which may write into the operands `indices`: it gets copies of them."""
    if not indices:
        return f

    def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return f(*(t.clone() if i in indices else t for i, t in enumerate(x)))

    return run
