"""Derivatives of a batch from those of its examples, where torch cannot differentiate what `torch.func.vmap` runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from t2j_core import PerformanceWarning
from t2j_core.extend import FlatFunction, warn

from .. import _compat
from .._base.decisions import BatchKind, Decisions
from .._base.errors import OUT_OF_MEMORY, first_line
from .._derivatives.flat_functions import Direction
from .batch_axes import Dims
from .in_turn import InTurn


def from_examples(
    f: FlatFunction,
    direction: Direction,
    ins: Sequence[int],
    outs: Sequence[int],
    size: int,
    dims: Dims,
    decisions: Decisions,
) -> FlatFunction:
    """The pushforward ("jvp") or pullback ("vjp") of a batch; `f` is that of one example."""
    given: Dims = tuple(dims[i] for i in ins) if direction == "jvp" else (0,) * len(outs)
    of_examples: FlatFunction = InTurn(f, size, (*dims, *given), decisions, "derivative of a batch")

    def pullback(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(g.sum(0) if dims[i] is None else g for i, g in zip(ins, of_examples(*a), strict=True))

    return of_examples if direction == "jvp" else pullback


def unless_it_fails(at_once: FlatFunction, one_by_one: FlatFunction, decisions: Decisions) -> FlatFunction:
    """`at_once`, a derivative of a batch, until it fails.

    The batching rule of an operation may change in place what its derivative needs (`index_reduce_`), or not take the
    gradient of another (a sparse one of an embedding). And where the examples run one after another, one of them may
    change what the derivative of another needs, such as a buffer of a module.
    """

    def run(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if _runs_in_turn(decisions):
            return one_by_one(*a)
        try:
            y = at_once(*a)
        except OUT_OF_MEMORY:
            raise
        except Exception as error:
            if _compat.in_transform():  # the outermost decides
                raise
            reason = first_line(error)
        else:
            return one_by_one(*a) if _runs_in_turn(decisions) else y
        y = one_by_one(*a)
        decisions.vmap_failures["derivative of a batch"] = reason
        warn(
            f"PyTorch cannot differentiate a batch of {decisions.name} by `torch.func.vmap` ({reason}), so derivatives "
            'of its examples run one after another. Pass `vmap_method="sequential"` to choose that.',
            PerformanceWarning,
        )
        return y

    return run


def _runs_in_turn(decisions: Decisions) -> bool:
    """Whether a batch that is differentiated has been found to run one example after another."""
    kinds: tuple[BatchKind, ...] = ("derivative of a batch", "recorded value")
    return any(decisions.vmap_failure(kind) is not None for kind in kinds)
