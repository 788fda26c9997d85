"""The backward of a kept graph, for one cotangent of each result or for a batch of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from .. import _compat
from .._base.errors import OUT_OF_MEMORY, first_line
from .._batching.batch_axes import BatchAxes
from .._workarounds.wrong_batching_rules import has_wrong_batching_rule
from .keeping import Keeping
from .kept_graph import Gradients, KeptGraph, Pairs
from .store import kept_graphs


class BackwardError(Exception):
    """The backward of a kept graph has failed."""


class Fitting(NamedTuple):
    """Which graph a backward can use: one of the batch `axes`, where only cotangents have the axis `of_cotangents`."""

    axes: BatchAxes
    of_cotangents: int | None


def fitting(axes: BatchAxes, residual: int) -> Fitting | None:
    """Which graph fits a backward over `axes`, whose operands are those before the residual; None if none does.

    The operands of another graph would lie differently in memory than those of the backward.
    """
    extra = [k for k, axis in enumerate(axes) if not axis.has(residual)]
    if len(extra) > 1 or any(axes[k].has(i) for k in extra for i in range(residual)):
        return None
    of_graph = BatchAxes(axis for axis in axes if axis.has(residual)).of_first(residual)
    return Fitting(of_graph, extra[0] if extra else None)


def pulled_back(
    graph: KeptGraph,
    x: Sequence[torch.Tensor],
    ins: Sequence[int],
    cotangents: Mapping[int, torch.Tensor],
    axis: int | None,
    keeping: Keeping,
) -> Gradients | None:
    """The cotangents of `ins`; None where memory was short. Those given have an `axis` more than the graph, or None.

    Raises `BackwardError`.
    """
    outs = [(*graph.out_edges[i], ct) for i, ct in cotangents.items() if i in graph.out_edges]
    pairs = [(edge, _compat.with_dtype(_with_front(_compat.conj(ct), axis), dtype)) for edge, dtype, ct in outs]
    if not pairs:
        return [None] * len(ins)
    try:
        with graph.saved.lent(x):
            grads = graph.gradients(ins, pairs) if axis is None else _of_many(graph, ins, pairs, keeping)
            return graph.saved.apart(_finished(grads, axis))
    except OUT_OF_MEMORY:
        kept_graphs.free(x[0].device)
        keeping.note_out_of_memory()
        return None
    except Exception as error:
        raise BackwardError(f"the backward of a kept graph failed, {first_line(error)}") from None


def _finished(grads: Gradients, axis: int | None) -> list[torch.Tensor | None]:
    return [None if g is None else _with_back(g, axis) for g in _compat.as_cotangents(grads)]


def _of_many(graph: KeptGraph, ins: Sequence[int], pairs: Pairs, keeping: Keeping) -> Gradients:
    """The gradients for many cotangents: at once, or one after another where torch cannot batch the backward."""
    if keeping.can_batch and not has_wrong_batching_rule(edge.node for edge, _ in pairs):
        try:
            return graph.gradients_at_once(ins, pairs)
        except OUT_OF_MEMORY:  # one after another takes less
            pass
        except Exception as error:
            keeping.note_not_batched(first_line(error))
    return graph.gradients_in_turn(ins, pairs)


def _with_front(t: torch.Tensor, axis: int | None) -> torch.Tensor:
    return t if axis is None else t.movedim(axis, 0)


def _with_back(t: torch.Tensor, axis: int | None) -> torch.Tensor:
    return t if axis is None else t.movedim(0, axis)
