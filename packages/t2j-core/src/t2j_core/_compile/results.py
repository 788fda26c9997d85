"""The results of a graph, which it writes into buffers that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .. import _compat
from .graphs import after_placeholders, is_lazy, output_of
from .refusals import NotCompiledError

_aten: Any = torch.ops.aten
_LIBRARY = {_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten.convolution.default}
_VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten.permute.default, _aten.t.default}


def write_into(graph: GraphModule, buffers: Sequence[torch.Tensor]) -> None:
    """Let a graph write its results into additional arguments, of which `buffers` are examples."""
    output = output_of(graph)
    values: Any = output.args[0]
    if len(values) != len(buffers):  # torch adds tokens, such as for the check in `torch.linalg.solve`
        raise NotCompiledError("it has operations whose order counts")
    written = []
    for k, (value, buffer) in enumerate(zip(values, buffers, strict=True)):
        with graph.graph.inserting_before(after_placeholders(graph)):
            place = graph.graph.placeholder(f"result_{k}")
        place.meta["val"] = buffer
        written.append(_written(graph, place, _without_copy(value)))
    output.args = (tuple(written),)


def _without_copy(value: Node) -> Node:
    """What a copy is of: results that are views are copied, but writing them is a copy."""
    while value.target is _aten.clone.default and not is_lazy(value.all_input_nodes[0]):
        (value,) = value.all_input_nodes
    return value


def _written(graph: GraphModule, place: Node, value: Node) -> Node:
    """The node that writes a value into its place. Where a library reads the value, it reads it there."""
    before = after_placeholders(graph) if value.op == "placeholder" else value.next
    with graph.graph.inserting_before(before):
        written = graph.graph.call_function(_compat.into(), (place, value))
    written.meta["val"] = place.meta["val"]
    if "val" in value.meta and place.meta["val"].dtype == value.meta["val"].dtype:
        value.replace_all_uses_with(written, delete_user_cb=_is_read_by_library)
    return written


def _is_read_by_library(user: Node) -> bool:
    """Whether a user of a value needs it in memory. Others the compiler computes along with it."""
    return user.target in _LIBRARY or (
        user.target in _VIEWS and bool(user.users) and all(map(_is_read_by_library, user.users))
    )
