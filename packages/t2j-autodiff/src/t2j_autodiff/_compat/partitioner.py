"""How torch cuts a traced function and its backward apart."""

from __future__ import annotations

from torch.fx import GraphModule


def partitioned(joint: GraphModule, n_operands: int, n_results: int) -> tuple[GraphModule, GraphModule]:
    """The forward, which also returns what it saves, and the backward, which takes that and cotangents."""
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    values = [node.meta["val"] for node in joint.graph.nodes if node.op == "placeholder"]
    split = values[:n_operands], values[n_operands:]
    forward, backward = min_cut_rematerialization_partition(joint, split, num_fwd_outputs=n_results)
    return forward, backward
