"""Running a function so that its autograd graph can be kept."""

from __future__ import annotations

import collections
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from t2j_core.extend import FlatFunction, modules_in_use, storage_uses

from .. import _compat
from .._batching.batch_axes import BatchAxes
from .kept_graph import KeptGraph
from .saved_tensors import SavedTensors


class Recording(NamedTuple):
    """A recorded run."""

    graph: KeptGraph
    results: tuple[torch.Tensor, ...]
    reason_not_kept: str | None  # what is wrong with graphs of this function


def record(f: FlatFunction, x: Sequence[torch.Tensor], ins: Sequence[int], axes: BatchAxes) -> Recording:
    """Run `f` with the operands `ins` requiring gradients, with every batch axis."""
    saved = SavedTensors(x, is_watched=not axes)
    graph = KeptGraph(axes, x[0].device, saved)
    uses = [storage_uses(t.untyped_storage()) for t in x]
    y, runs_a_module = _run(f, x, ins, graph, saved)
    if _are_kept(x, uses, y):
        return Recording(graph, y, "the function keeps its arguments in the graph")
    return Recording(graph, y, "the backward runs code of a module" if runs_a_module else None)


def _run(
    f: FlatFunction, x: Sequence[torch.Tensor], ins: Sequence[int], graph: KeptGraph, saved: SavedTensors
) -> tuple[tuple[torch.Tensor, ...], bool]:
    """The results, and whether the graph refers to a module; fills the leaves and edges of `graph`."""
    # New tensors, because `requires_grad_()` would make the graph refer to those of XLA.
    handles = [t.data for t in x] if saved.is_watched else [t.detach() for t in x]
    for i in ins:
        handles[i] = graph.axes.expanded(handles[i], i).detach().requires_grad_()
    before = _compat.references(handles)
    with (
        saved.lent(x),
        saved.watching(handles, x),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack),
        modules_in_use(until_the_end=False) as use,
    ):
        y = f(*handles)
    graph.out_edges = edges_to(y)
    results = tuple(t.detach() for t in y)
    del y  # the handles may be among them
    is_kept = list(map(operator.gt, _compat.references(handles), before))
    graph.leaves = {i: handles[i] for i in ins}
    for i, leaf in graph.leaves.items():
        if leaf.is_leaf and not is_kept[i]:
            leaf.data = leaf.new_empty(0)  # the graph keeps the tensor, but not the memory of XLA
    return results, use.is_kept


def _are_kept(x: Sequence[torch.Tensor], uses: Sequence[int], results: Sequence[torch.Tensor]) -> bool:
    """Whether more refers to the memory of the operands than before, beside the results."""
    of_results = collections.Counter(t.untyped_storage()._cdata for t in results)
    return any(
        storage_uses(t.untyped_storage()) - of_results[t.untyped_storage()._cdata] > before
        for t, before in zip(x, uses, strict=True)
    )


def edges_to(y: Sequence[torch.Tensor]) -> dict[int, tuple[torch.autograd.graph.GradientEdge, torch.dtype]]:
    """Where the backwards of results begin, and their dtypes, by result."""
    return {i: (_edge_to(t), t.dtype) for i, t in enumerate(y) if t.requires_grad}


def _edge_to(t: torch.Tensor) -> torch.autograd.graph.GradientEdge:
    """Where the backward of a result begins.

    torch 2.6: the edge of an `autograd.Function` does not keep the C++ node alive, which dies with the result. The edge
    of a view does: its node is torch's own, and refers to that one. Later versions have `GradientEdge.ownership_token`.
    """
    if isinstance(t.grad_fn, torch.autograd.function.BackwardCFunction):
        with torch.enable_grad():
            t = t.view_as(t)
    if t.grad_fn is None:  # an operand itself
        return torch.autograd.graph.get_gradient_edge(t)
    return torch.autograd.graph.GradientEdge(t.grad_fn, t.output_nr)
