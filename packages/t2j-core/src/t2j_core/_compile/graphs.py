"""Changes of a traced graph: result buffers and tensors that the function refers to become arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from .. import _compat
from .._random.generators import drawn_from
from .refusals import NotCompiledError


def placeholders(graph: GraphModule) -> list[Node]:
    """The nodes of what a graph takes."""
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def output_of(graph: GraphModule) -> Node:
    """The node that returns the results."""
    (node,) = (node for node in graph.graph.nodes if node.op == "output")
    return node


def is_view(node: Node) -> bool:
    """Whether a node is a view of one tensor, and depends on no other."""
    returns = node.target._schema.returns if isinstance(node.target, OpOverload) else ()
    aliases = len(returns) == 1 and returns[0].alias_info is not None
    return aliases and len(node.all_input_nodes) == 1 and node.args[0] is node.all_input_nodes[0]


def is_lazy(node: Node) -> bool:
    """Whether a value is, or is a view of, a conjugate or negative that is yet to be computed: a copy computes it."""
    while node.target not in (torch.ops.aten._conj.default, torch.ops.aten._neg_view.default):
        if not is_view(node):
            return False
        node = node.all_input_nodes[0]
    return True


def take_references(graph: GraphModule, mode: Any) -> list[torch.Tensor]:
    """Make the tensors that a function refers to the last arguments, so that their values are read at every call.

    `mode` is that of the fake tensors that it was traced with.
    """
    found: dict[str, tuple[Node, torch.Tensor]] = {}
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        name = str(node.target)
        value = getattr(graph, name, None)
        if isinstance(value, GraphModule) or _is_literal(node):
            continue
        if not isinstance(value, torch.Tensor):
            raise NotCompiledError(f"it uses a {type(value).__name__} of its own")
        if _compat.is_of_trace(value):
            raise NotCompiledError("it uses a tensor that it has kept from a trace")
        if name not in found:
            with graph.graph.inserting_before(after_placeholders(graph)):
                place = graph.graph.placeholder(f"reference_{len(found)}")
            place.meta["val"] = mode.from_tensor(value.detach(), static_shapes=True)
            found[name] = place, value
        node.replace_all_uses_with(found[name][0])
        graph.graph.erase_node(node)
    return [value for _, value in found.values()]


def drop_unused(graph: GraphModule, count: int) -> list[int]:
    """Remove what has no effect, and those of the first `count` arguments that are not used. Returns the others."""
    for node in [node for node in graph.graph.nodes if "_assert_tensor_metadata" in str(node.target)]:
        graph.graph.erase_node(node)  # `Tensor.to` leaves it behind
    graph.graph.eliminate_dead_code()
    operands = placeholders(graph)[:count]
    used = [k for k, node in enumerate(operands) if node.users]
    for node in operands:
        if not node.users:
            graph.graph.erase_node(node)
    return used


def may_draw(graph: GraphModule) -> bool:
    """Whether a graph may draw random numbers."""
    return any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in graph.graph.nodes)


def draws(graph: GraphModule) -> bool:
    """Whether a graph draws random numbers, as far as its constants tell."""
    return may_draw(graph) and any(
        isinstance(node.target, OpOverload) and drawn_from(node.target, node.args, node.kwargs) is not None
        for node in graph.graph.nodes
    )


def after_placeholders(graph: GraphModule) -> Node:
    """The first node that is no argument."""
    return next(node for node in graph.graph.nodes if node.op != "placeholder")


def _is_literal(node: Node) -> bool:
    """Whether a tensor was made of numbers in the code, as by `torch.tensor`."""
    return all(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users)
