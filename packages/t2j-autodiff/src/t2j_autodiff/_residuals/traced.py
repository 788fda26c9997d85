"""`residuals="graph"`: saved tensors as JAX arrays, so that XLA and `jax.checkpoint` manage their memory.

Torch's ahead-of-time autograd traces forward and backward once, as graphs of operations without Python. A function
whose Python depends on data, or that needs tracing by `torch.compile`, cannot be traced so; it keeps its autograd
graph instead.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from t2j_core import PerformanceWarning, dtype_t2j
from t2j_core.extend import Leaf, canonical, modules_in_use, remember, torch_device, warn

from .. import _compat
from .._base.decisions import Shared
from .._batching.batch_axes import Levels, with_all_levels
from .._batching.vmap import batched
from .._derivatives.reverse_mode import Flat, first_line
from .._mends.gradient_questions import GradientQuestions
from .._mends.wrong_in_batches import argument_of


class _NothingToKeepError(Exception):
    """No output depends on the inputs in a way that torch can differentiate."""


# Results of attention kernels on a GPU (aten/src/ATen/native/native_functions.yaml) by which the backward repeats a
# dropout. They may lie on the host, where a traced graph, whose tensors are all fake, does not expect them.
_OF_DROPOUT = {"philox_seed", "philox_offset", "rng_state", "unused"}


class Graphs:
    """A traced forward and backward of one function."""

    def __init__(self, forward: Any, backward: Any, n_results: int, differentiated: Sequence[int]) -> None:
        self._traced_on: torch.device = _places(forward)[0].meta["val"].device
        self._graphs: dict[torch.device, Any] = {self._traced_on: (forward, backward)}
        self._n = n_results
        self._differentiated = tuple(differentiated)  # the outputs that the backward takes a cotangent of
        places = _places(forward)
        saved = _outputs(forward)[n_results:]
        self._inputs = {k: places.index(node) for k, node in enumerate(saved) if node in places}
        self._unused = {k: node.meta["val"] for k, node in enumerate(saved) if _is_of_no_dropout(node)}
        self._own = [k for k in range(len(saved)) if k not in self._inputs and k not in self._unused]
        self._count = len(saved)
        values = [saved[k].meta["val"] for k in self._own]
        if not all(isinstance(value, torch.Tensor) for value in values):
            raise NotImplementedError("it saves sizes")
        self._orders = [_order(value) for value in values]
        self._tangent_orders = [
            _order(node.meta["val"]) for node in _places(backward)[len(saved) :]
        ]  # the graph was traced for the strides of its outputs
        self.leaves = tuple(_leaf(value.permute(order)) for value, order in zip(values, self._orders, strict=True))
        self.is_reversed = False

    @staticmethod
    def make(
        flat: Flat,
        operands: Sequence[Leaf],
        results: Sequence[Leaf],
        ins: Sequence[int],
        outs: Sequence[int],
        shared: Shared,
        label: str,
    ) -> Graphs | None:
        """Trace the function; None with a warning where that is not possible."""
        try:
            forward, backward, differentiated = _trace(flat, operands, ins)
            graphs = Graphs(forward, backward, len(results), differentiated)
        except _NothingToKeepError:
            return None
        except Exception as error:
            warn(
                f'{shared.name} cannot be traced for `residuals="graph"` ({first_line(error)}); its autograd graph is '
                'kept instead, as with `residuals="auto"`.',
                PerformanceWarning,
            )
            return None
        graphs._set(operands, results, ins, shared)
        megabytes = sum(leaf.nbytes for leaf in graphs.leaves) / 1e6
        shared.residuals[label] = f"{len(graphs.leaves)} arrays ({megabytes:.1f} MB) from a traced graph"
        return graphs

    def _set(self, operands: Any, results: Any, ins: Sequence[int], shared: Shared) -> None:
        self._operands, self._results, self._ins, self._shared = operands, results, tuple(ins), shared
        self._pullbacks: dict[Any, Flat] = {}

    def _on(self, device: torch.device) -> Any:
        """Forward and backward for operands on `device`."""
        if device not in self._graphs:
            self._graphs[device] = tuple(_moved(g, self._traced_on, device) for g in self._graphs[self._traced_on])
        return self._graphs[device]

    # --- forward ---------------------------------------------------------------------------------------------------

    def forward(self, plain: Flat, levels: Levels) -> Flat:
        """A flat function that returns the outputs and the saved tensors."""

        def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            forward, _ = self._on(x[0].device)
            with torch.no_grad():
                answer = forward(*x)
            own = (answer[self._n + k].permute(order) for k, order in zip(self._own, self._orders, strict=True))
            return (*answer[: self._n], *(t.resolve_conj() for t in own))

        return self._over(run, [*self._results, *self.leaves], levels, 0)

    def drop(self, residuals: Sequence[torch.Tensor]) -> None:
        """Forward mode needs no residuals; XLA frees them."""

    # --- backward --------------------------------------------------------------------------------------------------

    def backward(
        self,
        x: Sequence[torch.Tensor],
        residuals: Sequence[torch.Tensor],
        ins: Sequence[int],
        cotangents: Mapping[int, torch.Tensor],
        levels: Levels,
    ) -> tuple[torch.Tensor, ...]:
        """The cotangents of `ins` from the saved tensors."""
        key = (tuple(ins), tuple(cotangents), levels)
        pullback = self._pullbacks.get(key)
        if pullback is None:
            pull = self._pullback(tuple(ins), tuple(cotangents))
            leaves = [self._operands[i] for i in ins]
            pullback = remember(self._pullbacks, key, self._over(pull, leaves, levels, len(cotangents)))
        return pullback(*x, *residuals, *cotangents.values())

    def _pullback(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> Flat:
        n, m = len(self._operands), len(self._operands) + len(self.leaves)

        def pull(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given = dict(zip(outs, a[m:], strict=True))
            cotangents = [
                self._cotangent(i, given, a[0].device).permute(order).contiguous().permute(_inverse(order))
                for i, order in zip(self._differentiated, self._tangent_orders, strict=True)
            ]
            own = (t.permute(_inverse(order)) for t, order in zip(a[n:m], self._orders, strict=True))
            saved = {k: a[i] for k, i in self._inputs.items()}
            saved |= zip(self._own, own, strict=True)
            saved |= {k: torch.empty(t.shape, dtype=t.dtype, device=a[0].device) for k, t in self._unused.items()}
            _, backward = self._on(a[0].device)
            with torch.no_grad():
                grads = backward(*(saved[k] for k in range(self._count)), *cotangents)
            of_ins = dict(zip(range(n), grads, strict=True))
            return tuple(
                torch.zeros_like(a[i]) if of_ins[i] is None else _compat.conj(_compat.materialised(of_ins[i]))
                for i in ins
            )

        return pull

    def _cotangent(self, index: int, given: Mapping[int, torch.Tensor], device: Any) -> torch.Tensor:
        leaf = self._results[index]
        if index in given:
            return _compat.conj(given[index]).to(leaf.torch_dtype)
        return torch.zeros(leaf.shape, dtype=leaf.torch_dtype, device=device)

    def _over(self, f: Flat, leaves: Sequence[Leaf], levels: Levels, n_linear: int) -> Flat:
        for k, (size, dims) in enumerate(levels):
            answered = [with_all_levels(leaf, levels[:k]) for leaf in leaves]
            f = batched(f, answered, size, (*dims, *(0,) * n_linear), self._shared, is_derivative=True)
        return f


def _trace(flat: Flat, operands: Sequence[Leaf], ins: Sequence[int]) -> tuple[Any, Any, list[int]]:
    """(forward graph, backward graph, outputs that have a cotangent)."""
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
        with GradientQuestions() as questions:
            results = flat(*x)
        if questions.of_leaves or questions.changes_course:
            raise NotImplementedError(f"it looks at {questions.decides}")
        for t in results:  # results may not share memory with anything
            y.append(t.clone() if t._is_view() or any(t is other for other in (*x, *y)) else t)
        requires[:] = [t.requires_grad for t in y]
        return tuple(y)

    with modules_in_use(until_the_end=True):
        joint: Any = aot_export_joint_simple(f, tuple(x), trace_joint=True)
    differentiated = [i for i, wanted in enumerate(requires) if wanted]
    if not differentiated:
        raise _NothingToKeepError
    places = _places(joint)
    tangents = len(places) - len(operands)
    if tangents != len(differentiated):
        raise NotImplementedError(f"{tangents} cotangents for {len(differentiated)} outputs")
    values = [node.meta["val"] for node in places]
    split = values[: len(operands)], values[len(operands) :]
    forward, backward = min_cut_rematerialization_partition(joint, split, num_fwd_outputs=len(requires))
    return forward, backward, differentiated


def _is_of_no_dropout(node: Any) -> bool:
    """Whether it is what an attention without dropout says of its random numbers."""
    if getattr(node.target, "__name__", "") != "getitem":
        return False
    call, index = node.args
    schema = getattr(call.target, "_schema", None)
    if schema is None or call.target.namespace != "aten" or schema.returns[index].name not in _OF_DROPOUT:
        return False
    dropout = argument_of(call.target, "dropout_p", call.args, call.kwargs)
    if dropout:
        raise NotImplementedError("an attention with dropout keeps its random numbers on the host")
    return dropout is not None


def _moved(module: Any, traced_on: torch.device, device: torch.device) -> Any:
    """A graph for another device than it was traced on, which its operations that make tensors name."""
    from torch.fx import GraphModule
    from torch.fx.node import map_aggregate

    graph = copy.deepcopy(module.graph)
    move = lambda leaf: device if isinstance(leaf, torch.device) and leaf.type == traced_on.type else leaf
    for node in graph.nodes:
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), move)
    return GraphModule(module, graph)


def _order(value: torch.Tensor) -> list[int]:
    """The order of axes in which a tensor is contiguous, or nearest to it."""
    return sorted(range(value.ndim), key=lambda axis: -value.stride()[axis])


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _places(module: Any) -> list[Any]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def _outputs(module: Any) -> list[Any]:
    return list(next(node for node in module.graph.nodes if node.op == "output").args[0])


def _leaf(value: torch.Tensor) -> Leaf:
    return Leaf(tuple(value.shape), canonical(dtype_t2j(value.dtype)), value.dtype)
