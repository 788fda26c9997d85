"""What a traced graph returns."""

from __future__ import annotations

from collections.abc import Sequence

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
