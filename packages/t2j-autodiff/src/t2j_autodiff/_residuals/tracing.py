"""Tracing forward and backward of a function by torch's ahead-of-time autograd."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from t2j_core.extend import FlatFunction, Leaf, modules_in_use, torch_device
from torch.fx import GraphModule, Node

from .. import _compat
from .._workarounds.requires_grad_queries import RequiresGradQueries


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


def trace(flat: FlatFunction, operands: Sequence[Leaf], ins: Sequence[int]) -> Traced:
    """Trace a function that is differentiated with respect to `ins`. Raises any exception where that fails."""
    from torch._functorch.aot_autograd import aot_export_joint_simple
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        x = [torch.empty(leaf.shape, dtype=leaf.torch_dtype, device=torch_device()) for leaf in operands]
    for i in ins:
        x[i].requires_grad_()
    requires: list[bool] = []

    def f(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y: list[torch.Tensor] = []
        with RequiresGradQueries() as queries:
            results = flat(*x)
        if queries.asks_for_leaves or queries.changes_course:
            raise NotImplementedError(f"it looks at {queries.decides}")
        for t in results:  # results may not share memory with anything
            y.append(t.clone() if t._is_view() or any(t is other for other in (*x, *y)) else t)
        requires[:] = [t.requires_grad for t in y]
        return tuple(y)

    with modules_in_use(until_the_end=True):
        joint: GraphModule = aot_export_joint_simple(f, tuple(x), trace_joint=True)  # type: ignore[assignment]
    differentiated = [i for i, wanted in enumerate(requires) if wanted]
    if not differentiated:
        raise NothingToKeepError
    parameters = parameters_of(joint)
    n_cotangents = len(parameters) - len(operands)
    if n_cotangents != len(differentiated):
        raise NotImplementedError(f"{n_cotangents} cotangents for {len(differentiated)} outputs")
    values = [node.meta["val"] for node in parameters]
    split = values[: len(operands)], values[len(operands) :]
    forward, backward = min_cut_rematerialization_partition(joint, split, num_fwd_outputs=len(requires))
    return Traced(forward, backward, differentiated)


def parameters_of(module: GraphModule) -> list[Node]:
    """What a traced function takes."""
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def outputs_of(module: GraphModule) -> list[Node]:
    """What a traced function returns."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    return list(output.args[0])


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
    if getattr(node.target, "__name__", "") != "getitem":
        return False
    call: Any
    index: Any
    call, index = node.args
    schema = getattr(call.target, "_schema", None)
    if schema is None or call.target.namespace != "aten" or index >= len(schema.returns):  # one list, as of `unbind`
        return False
    if schema.returns[index].name not in _OF_DROPOUT:
        return False
    dropout = _compat.argument_of(call.target, "dropout_p", call.args, call.kwargs)
    if dropout:
        raise NotImplementedError("an attention with dropout keeps its random numbers on the host")
    return dropout is not None
