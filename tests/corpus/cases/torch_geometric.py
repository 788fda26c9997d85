"""Layers, models and operations of torch_geometric, on one small graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch_geometric.nn as gnn
from corpus_case import Case, TorchCase, TorchTask
from torch import Tensor, nn

EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 0]])


def layer(make: Callable[[], Any], *more: Tensor) -> Callable[[], TorchTask]:
    return lambda: TorchTask(make().eval(), (torch.randn(5, 4), EDGES, *more))


class GraphClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = gnn.GraphConv(4, 6), gnn.GraphNorm(6)
        self.pool, self.head = gnn.aggr.AttentionalAggregation(nn.Linear(6, 1)), nn.Linear(12, 2)

    def forward(self, x: Tensor, edges: Tensor, batch: Tensor) -> Tensor:
        h = self.norm(self.conv(x, edges), batch, batch_size=2).relu()
        pooled = self.pool(h, batch, dim_size=2)
        return self.head(torch.cat([pooled, gnn.global_mean_pool(h, batch, size=2)], 1))


class Heterogeneous(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        relations = {("a", "to", "b"): gnn.SAGEConv((3, 4), 2), ("b", "back", "a"): gnn.SAGEConv((4, 3), 2)}
        self.conv = gnn.HeteroConv(relations)

    def forward(self, a: Tensor, b: Tensor, edges: Tensor) -> dict[str, Tensor]:
        return self.conv({"a": a, "b": b}, {("a", "to", "b"): edges, ("b", "back", "a"): edges.flip(0)})


def schnet() -> TorchTask:
    net = gnn.SchNet(8, 8, 1, num_gaussians=4, cutoff=3.0, interaction_graph=CompleteGraph())
    return TorchTask(net.eval(), (torch.tensor([6, 1, 1, 8]), torch.randn(4, 3)))


class CompleteGraph(nn.Module):
    """All pairs of atoms: torch_cluster, which finds neighbours, is compiled code of its own."""

    def forward(self, positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        i, j = torch.triu_indices(len(positions), len(positions), 1)
        edges = torch.cat([torch.stack([i, j]), torch.stack([j, i])], 1)
        return edges, (positions[edges[0]] - positions[edges[1]]).norm(dim=-1)


BATCH = torch.tensor([0, 0, 0, 1, 1])
TASKS = {
    "gcn": layer(lambda: gnn.GCNConv(4, 3)),
    "gat": layer(lambda: gnn.GATConv(4, 3, heads=2)),
    "gatv2 with edge features": layer(lambda: gnn.GATv2Conv(4, 3, edge_dim=2), torch.randn(7, 2)),
    "graph transformer": layer(lambda: gnn.TransformerConv(4, 3, heads=2)),
    "sage with lstm": layer(lambda: gnn.SAGEConv(4, 3, aggr="max")),
    "gin": layer(lambda: gnn.GIN(4, 6, 2)),
    "pna": layer(
        lambda: gnn.PNAConv(
            4, 4, ["mean", "std", "max"], ["identity", "amplification"], torch.tensor([0, 3, 2]), towers=1
        )
    ),
    "edge convolution": layer(lambda: gnn.EdgeConv(nn.Sequential(nn.Linear(8, 3), nn.ReLU()))),
    "chebyshev": layer(lambda: gnn.ChebConv(4, 3, K=3)),
    "appnp": layer(lambda: gnn.APPNP(K=3, alpha=0.1)),
    "gated graph": layer(lambda: gnn.GatedGraphConv(4, 2)),
    "relational": layer(lambda: gnn.RGCNConv(4, 3, 2), torch.tensor([0, 1, 0, 1, 1, 0, 0])),
    "graph classifier": layer(GraphClassifier, BATCH),
    "top-k pooling": layer(lambda: gnn.TopKPooling(4, ratio=3), None, None, BATCH),
    "heterogeneous": lambda: TorchTask(Heterogeneous(), (torch.randn(5, 3), torch.randn(5, 4), EDGES)),
    "schnet": schnet,
    "dense pooling": lambda: TorchTask(
        gnn.dense_diff_pool, (torch.randn(1, 4, 3), torch.rand(1, 4, 4), torch.randn(1, 4, 2))
    ),
}


def cases() -> Iterator[Case]:
    yield from (TorchCase(name, make) for name, make in TASKS.items())
