"""What a traced graph takes and returns."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import GraphModule, Node


def parameters_of(module: GraphModule) -> list[Node]:
    """What a traced function takes."""
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def outputs_of(module: GraphModule) -> list[Node]:
    """What a traced function returns."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    return list(output.args[0])


def return_from(module: GraphModule, values: Sequence[Node]) -> None:
    """Let a traced function return other values."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    output.args = (tuple(values),)
    module.graph.eliminate_dead_code()
    module.recompile()
