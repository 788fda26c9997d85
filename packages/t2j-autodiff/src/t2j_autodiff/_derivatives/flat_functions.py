"""Flat functions, and runs of them that autograd records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from t2j_core.extend import FlatFunction

Tensors = Sequence[torch.Tensor]

Direction = Literal["jvp", "vjp"]
"""Of a linear map at a point: a pushforward, of tangents to tangents, or a pullback, of cotangents to cotangents."""


def are_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no element is NaN or infinite."""
    return all(bool(t.isfinite().all()) for t in tensors)


def restricted(f: FlatFunction, x: Tensors, ins: Sequence[int], outs: Sequence[int] | None = None) -> FlatFunction:
    """`f` at `x` as a function of the operands `ins` to the results `outs`, or to all."""

    def g(*moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = list(x)
        for i, value in zip(ins, moved, strict=True):
            inputs[i] = value
        y = f(*inputs)
        return tuple(y) if outs is None else tuple(y[i] for i in outs)

    return g


def requiring_grad(x: Tensors, indices: Iterable[int]) -> list[torch.Tensor]:
    """The operands, of which those at `indices` require gradients, so that autograd records a run on them.

    The function sees leaves, as it would in plain PyTorch. Results of an outer function become views instead, through
    which an outer derivative still reaches them; so do tensors that occur twice, so that each has a gradient.
    """
    handles = list(x)
    for i in indices:
        if not x[i].requires_grad:
            handles[i] = x[i].detach().requires_grad_()
        elif not x[i].is_leaf or sum(t is x[i] for t in x) > 1:
            handles[i] = x[i].view_as(x[i])
    return handles
