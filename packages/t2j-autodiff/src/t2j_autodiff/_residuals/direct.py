"""Graphs of a forward and of pullbacks for the compiler, made of those that were traced: nothing is traced again."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from t2j_core.extend import Leaf, is_lazy, placeholders
from torch.fx import Graph, GraphModule, Node

from .graphs import outputs_of


def is_direct(leaf: Leaf) -> bool:
    """Whether a tensor is to torch what it is to JAX: it needs no conversion, and no conjugation."""
    return str(leaf.torch_dtype) == f"torch.{leaf.dtype.name}" and not leaf.torch_dtype.is_complex


def is_contiguous(node: Node) -> bool:
    """Whether a value lies in memory as an array of JAX does."""
    contiguous: bool = node.meta["val"].is_contiguous()
    return contiguous


def rearranged(module: GraphModule, places: Sequence[int], count: int, chosen: Sequence[int]) -> GraphModule | None:
    """A graph of `count` arguments, whose parameters are those at `places`, with the chosen results, if it has them."""
    graph, copies = Graph(), dict[Node, Node]()
    arguments = [graph.placeholder(f"argument_{k}") for k in range(count)]
    for node, place in zip(placeholders(module), places, strict=True):
        arguments[place].meta = copy.copy(node.meta)
        copies[node] = arguments[place]
    graph.graph_copy(module.graph, copies)
    results = [outputs_of(module)[k] for k in chosen]
    if not all(isinstance(node, Node) and not is_lazy(node) for node in results):
        return None
    graph.output(tuple(copies[node] for node in results))
    return GraphModule(module, graph)
