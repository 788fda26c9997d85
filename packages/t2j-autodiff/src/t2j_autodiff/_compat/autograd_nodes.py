"""What the nodes of an autograd graph show of the functions that they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.autograd.graph import Node as Node


def is_once_differentiable(results: Iterable[torch.Tensor]) -> bool:
    """Whether the graph of `results` contains a backward that is marked with `once_differentiable`.

    `torch.autograd.function.once_differentiable` runs such a backward under `no_grad` and puts a node `Error`
    (`DelayedError` in torch/csrc/autograd/functions/basic_ops.cpp) above its results, which leads to no input: where
    inputs may be unused, autograd takes the derivative for zero.
    """
    return any(type(node).__name__ == "Error" for node in nodes_of(t.grad_fn for t in results))


def has_own_jvp(results: Iterable[torch.Tensor]) -> bool:
    """Whether the graph of `results` contains an `autograd.Function` that defines `jvp`."""
    return any(cls.jvp is not torch.autograd.Function.jvp for cls in _functions(results))


def has_function(results: Iterable[torch.Tensor]) -> bool:
    """Whether the graph of `results` contains an `autograd.Function`."""
    return any(True for _ in _functions(results))


def has_old_function(results: Iterable[torch.Tensor]) -> bool:
    """Whether the graph of `results` contains an `autograd.Function` whose `forward` gets the context."""
    default = torch.autograd.Function.setup_context
    return any(cls.setup_context is default for cls in _functions(results))


def nodes_of(roots: Iterable[Node | None]) -> Iterator[Node]:
    """All nodes of the graphs that begin at `roots`."""
    queue: list[Node | None] = list(roots)
    seen: set[Node] = set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        queue += [edge for edge, _ in node.next_functions]


def names_of_nodes(roots: Iterable[Node]) -> tuple[str, ...]:
    """The names of all nodes of the graphs that begin at `roots`, in an order that depends on the graphs alone."""
    return tuple(node.name() for node in nodes_of(roots))


def nodes_made() -> int:
    """How many nodes this thread has made, those without inputs not counted."""
    count: int = torch._C._autograd._get_sequence_nr()
    return count


can_count_nodes = hasattr(torch._C._autograd, "_get_sequence_nr")


def _functions(results: Iterable[torch.Tensor]) -> Iterator[type[torch.autograd.Function]]:
    """The `autograd.Function`s of a graph: `FunctionMeta` makes a class of nodes for each, which refers to it."""
    for node in nodes_of(t.grad_fn for t in results):
        cls = getattr(type(node), "_forward_cls", None)
        if cls is not None:
            yield cls
