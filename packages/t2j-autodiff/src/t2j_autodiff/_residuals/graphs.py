"""What a traced graph returns, and what computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t2j_core.extend import output_of
from torch.fx import GraphModule, Node


def outputs_of(module: GraphModule) -> list[Node]:
    """What a traced function returns."""
    values: list[Node] = list(output_of(module).args[0])  # type: ignore[arg-type]
    return values


def return_from(module: GraphModule, values: Sequence[Node]) -> None:
    """Let a traced function return other values."""
    output_of(module).args = (tuple(values),)
    module.graph.eliminate_dead_code()
    module.recompile()


def call_of(node: Node) -> tuple[Node, int | None]:
    """The call that computes a value, and which of its results the value is; None is its only one."""
    if getattr(node.target, "__name__", "") != "getitem":
        return node, None
    call: Any
    index: Any
    call, index = node.args
    return call, index
