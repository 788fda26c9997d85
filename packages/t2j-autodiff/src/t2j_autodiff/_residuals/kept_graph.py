"""A recorded autograd graph, and runs of its backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from t2j_core.extend import around_backward, around_backward_of
from torch.autograd.graph import GradientEdge

from .. import _compat
from .._batching.batch_axes import BatchAxes
from .saved_tensors import SavedTensors
from .windows import Windows

Pairs = Sequence[tuple[GradientEdge, torch.Tensor]]
"""Where a backward begins, and with what."""

Gradients = Sequence[torch.Tensor | None]
"""The gradient of each operand; None where no result depends on it."""


@dataclass(eq=False)
class KeptGraph:
    """The autograd graph of one forward. It refers to no memory of XLA: the backward brings the operands again."""

    axes: BatchAxes
    device: torch.device  # of the operands
    saved: SavedTensors | Windows  # how it gets the memory of operands
    leaves: dict[int, torch.Tensor] = field(default_factory=dict)  # by operand; without memory of XLA
    out_edges: dict[int, tuple[GradientEdge, torch.dtype]] = field(default_factory=dict)  # by result, with its dtype
    round: int = 0  # see `Waiting`

    def free(self) -> None:
        """Free its nodes."""
        self.leaves, self.out_edges = {}, {}

    def names(self) -> tuple[str, ...]:
        """The names of its nodes."""
        return _compat.names_of_nodes(edge.node for edge, _ in self.out_edges.values())

    def nbytes(self) -> Mapping[torch.device, int]:
        """How many bytes it holds on each device."""
        return self.saved.nbytes(self.device)

    def gradients(
        self, ins: Sequence[int], pairs: Pairs, *, retain_graph: bool = False, at_once: bool = False
    ) -> Gradients:
        """The gradients of the operands `ins`."""
        edges, cotangents = zip(*pairs, strict=True)
        leaves = tuple(map(self.leaves.__getitem__, ins))
        with around_backward(edges):
            return _compat.engine_grad_of_edges(
                edges,
                leaves,
                cotangents,
                retain_graph=retain_graph,
                at_once=at_once,
                around=around_backward_of({}),  # whose key is not known, so that what draws again is refused
            )

    def gradients_at_once(self, ins: Sequence[int], pairs: Pairs) -> Gradients:
        """The gradients for many cotangents, along axis 0 of each: one batched run of the backward."""
        return self.gradients(ins, pairs, retain_graph=True, at_once=True)

    def gradients_in_turn(self, ins: Sequence[int], pairs: Pairs) -> Gradients:
        """The gradients for many cotangents, along axis 0 of each: one run of the backward after another."""
        count = len(pairs[0][1])
        rows = [self.gradients(ins, [(edge, ct[k]) for edge, ct in pairs], retain_graph=True) for k in range(count)]
        return [None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True)]
