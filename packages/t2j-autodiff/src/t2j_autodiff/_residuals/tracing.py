"""Tracing forward and backward of a function by torch's ahead-of-time autograd."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from t2j_core.extend import (
    FlatFunction,
    Leaf,
    NotCompiledError,
    fixed_shapes,
    modules_in_use,
    placeholders,
    torch_device,
)
from t2j_core.extend import trace as trace_ahead
from torch.fx import GraphModule, Node

from .. import _compat
from .._workarounds.requires_grad_queries import RequiresGradQueries
from .graphs import call_of
from .saved_views import save_what_views_are_of


class NothingToKeepError(Exception):
    """No result depends on the operands in a way that torch can differentiate."""


class Traced(NamedTuple):
    """A forward that returns results and saved tensors, and a backward that takes saved tensors and cotangents."""

    forward: GraphModule
    backward: GraphModule
    differentiated: list[int]  # the results that the backward takes a cotangent of

    def moved(self, traced_on: torch.device, device: torch.device) -> Traced:
        """For another device than the one that it was traced on."""
        forward, backward = (_moved(module, traced_on, device) for module in (self.forward, self.backward))
        return Traced(forward, backward, self.differentiated)


def trace(name: str, flat: FlatFunction, operands: Sequence[Leaf], ins: Sequence[int], *, compiles: bool) -> Traced:
    """Trace a function that is differentiated with respect to `ins`. Raises any exception where that fails."""
    with fixed_shapes():
        x = [torch.empty(leaf.shape, dtype=leaf.torch_dtype, device=torch_device()) for leaf in operands]
    for i in ins:
        x[i].requires_grad_()
    requires: list[bool] = []

    def f(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with RequiresGradQueries() as queries:
            y = flat(*x)
        if queries.asks_for_leaves or queries.changes_course:
            raise NotCompiledError(f"it looks at {queries.decides}")
        requires[:] = [t.requires_grad for t in y]
        return tuple(y)

    with modules_in_use(until_the_end=True):
        joint = trace_ahead(name, f, x, joint=True, decomposes=compiles)
    differentiated = [i for i, wanted in enumerate(requires) if wanted]
    if not differentiated:
        raise NothingToKeepError
    parameters = placeholders(joint)
    n_cotangents = len(parameters) - len(operands)
    if n_cotangents != len(differentiated):
        raise NotImplementedError(f"{n_cotangents} cotangents for {len(differentiated)} outputs")
    forward, backward = _compat.partitioned(joint, len(operands), len(requires))
    save_what_views_are_of(forward, backward, len(requires))
    return Traced(forward, backward, differentiated)


def _moved(module: GraphModule, traced_on: torch.device, device: torch.device) -> GraphModule:
    """A copy in which the operations that make tensors name another device."""
    from torch.fx.node import map_aggregate

    graph = copy.deepcopy(module.graph)
    move = lambda leaf: device if isinstance(leaf, torch.device) and leaf.type == traced_on.type else leaf
    for node in graph.nodes:
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), move)
    return GraphModule(module, graph)


# Results of attention kernels on a GPU (aten/src/ATen/native/native_functions.yaml) by which the backward repeats a
# dropout. They may lie on the host, where a traced function, whose tensors are all fake, does not expect them.
_OF_DROPOUT = {"philox_seed", "philox_offset", "rng_state", "unused"}


def is_of_no_dropout(node: Node) -> bool:
    """Whether a saved value is the state of the random numbers of an attention that has no dropout."""
    call, index = call_of(node)
    target: Any = call.target
    schema = getattr(target, "_schema", None)
    if index is None or schema is None or target.namespace != "aten":
        return False
    if index >= len(schema.returns):  # one list, as of `unbind`
        return False
    if schema.returns[index].name not in _OF_DROPOUT:
        return False
    dropout = _compat.argument_of(target, "dropout_p", call.args, call.kwargs)
    if dropout:
        raise NotImplementedError("an attention with dropout keeps its random numbers on the host")
    return dropout is not None
