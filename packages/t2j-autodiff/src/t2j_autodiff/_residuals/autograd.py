"""The forward's autograd graph, kept alive until its backward, so that the forward runs once.

JAX's residual is one integer for each example. Whatever happens to them (XLA may merge, hoist, drop or repeat calls,
JAX and users mix examples), a backward that does not get exactly the numbers of a graph, or whose graph is gone, runs
the forward again: right results never depend on a kept graph.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import logging
import math
import operator
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from t2j_core import T2jWarning
from t2j_core.extend import Leaf, generator_states, modules_in_use, remember, storage_uses, warn

from .. import _compat
from .._base.config import residual_limit
from .._base.decisions import Shared
from .._base.errors import OUT_OF_MEMORY
from .._batching.batch_axes import Levels, with_batch_axes
from .._batching.vmap import HiddenGradientError
from .._derivatives.reverse_mode import Flat, first_line
from .._mends.wrong_in_batches import RandomOperations, is_wrong_in_batches
from . import example_numbers, tickets
from .store import KeptGraphs
from .waiting import Waiting

logger = logging.getLogger("t2j_autodiff")

NUMBER = Leaf((), np.dtype(np.int32), torch.int32)
_MUCH = 16
_NO_GRAPH = example_numbers.NOT_KEPT
_LEAST_BYTES = 4096  # what a graph weighs at least
_MOST_MIXED = 3  # batches in a row whose graphs are of no use
_CHECKS = 3  # how many runs are watched for random numbers

Pairs = list[tuple[torch.autograd.graph.GradientEdge, torch.Tensor]]
"""Where a backward begins, and with what."""


class _NotRecordedError(Exception):
    """A run that was to be recorded has failed."""


@dataclass
class _Graph:
    """A recorded forward. It refers to no memory of XLA: saved inputs are rebuilt from the operands of the backward."""

    owner: LiveGraphs
    levels: Levels
    sizes: tuple[int, ...]  # of the batch axes, the outermost first
    device: torch.device  # of the inputs
    ins: dict[int, Any] = field(default_factory=dict)  # input -> its gradient edge
    outs: dict[int, tuple[Any, torch.dtype]] = field(default_factory=dict)  # output -> its gradient edge, its dtype
    operands: list[torch.Tensor] = field(default_factory=list)  # filled while the forward or the backward runs
    storages: dict[int, tuple[torch.device, int]] = field(default_factory=dict)  # saved memory -> device, bytes
    round: int = 0  # see `Waiting`

    def nbytes(self) -> dict[torch.device, int]:
        """How many bytes it holds on each device."""
        sizes = {self.device: 0}
        for device, size in self.storages.values():
            sizes[device] = sizes.get(device, 0) + size
        return {device: max(size, _LEAST_BYTES) for device, size in sizes.items()}


@dataclass(frozen=True)
class _OfInput:
    """A saved tensor that lies in the memory of an input."""

    index: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    is_conj: bool


_kept = KeptGraphs()


def _keep(graph: _Graph) -> int:
    graph.owner.waiting.note(graph)
    return _kept.keep(graph.owner.waiting.shelf, graph, graph.nbytes(), residual_limit)


def clear_residuals() -> int:
    """Free the autograd graphs that wait for a backward, and return how many they were.

    Only a backward that never comes leaves one, such as that of a `jax.vjp` whose pullback is not called. Backwards
    that come after all run the forward again.

    >>> clear_residuals() >= 0
    True
    """
    return _kept.clear()


class LiveGraphs:
    """Keeps the graphs of one function, differentiated with respect to the inputs `ins`."""

    leaves = (NUMBER,)

    def __init__(self, ins: Sequence[int], shared: Shared, label: str) -> None:
        self.ins = tuple(ins)
        self.shared = shared
        self.label = label
        self.waiting = Waiting(_kept)
        self.reason_not_kept: str | None = None
        self.reason_no_batch_is_kept: str | None = None
        self.failure: str | None = None  # of the newest backward, until another forward shows whose fault it was
        self.is_reversed = False  # a backward has been asked for
        self.is_pushed = False  # a forward-mode derivative has run
        self.can_batch = True  # one graph can be pulled back along many cotangents at once
        self.calls_out_of_memory = 0
        self._say("kept autograd graph")

    def _say(self, what: str) -> None:
        self.shared.residuals.pop(self.label, None)
        remember(self.shared.residuals, self.label, what)

    def give_up(self, reason: str) -> None:
        """Run the forward again in every backward from now on."""
        self.reason_not_kept = reason
        self._say(f"recompute ({reason})")

    def note_another_forward(self) -> None:
        """Give up keeping graphs if a backward has failed that works after another forward."""
        if self.failure is not None:
            self.give_up(self.failure)

    def _note_out_of_memory(self) -> None:
        """Note a call whose forward runs again because memory was short. Later calls keep their graphs."""
        self.calls_out_of_memory += 1
        self._say(f"kept autograd graph, except in calls that ran out of memory ({self.calls_out_of_memory})")

    def _give_up_batches(self, reason: str) -> None:
        """Run the forward again in the backward of every batch: under `torch.func.vjp` the function sees all."""
        self.reason_no_batch_is_kept = reason
        self.shared.residuals[f"{self.label} in batches"] = f"recompute ({reason})"

    # --- forward ---------------------------------------------------------------------------------------------------

    def forward(self, plain: Flat, f: Flat, levels: Levels) -> Flat:
        """A flat function that returns the outputs of `plain`, and for each example its number in a kept graph.

        `f` is what is recorded; it takes the inputs `ins` with all batch axes, so that each example has a gradient of
        its own.
        """
        sizes = tuple(size for size, _ in reversed(levels))

        def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            number, y, failure = _NO_GRAPH, None, None
            if self._is_wanted(x, levels) and not _compat.in_transform():
                try:
                    number, y = self._record(f, x, levels, sizes)
                except _NotRecordedError as error:
                    failure = str(error)
            answer = plain(*x) if y is None else y  # if the function itself is at fault, it raises again
            if failure is not None:
                self.give_up(failure)
            tickets.leave(tickets.NOTHING if number == _NO_GRAPH else number)
            return (*answer, example_numbers.as_tensor(number, sizes, x[0].device))

        return run

    def _is_wanted(self, x: Sequence[torch.Tensor], levels: Levels) -> bool:
        if self.reason_not_kept is not None or (self.is_pushed and not self.is_reversed):
            return False
        if not levels:
            return True
        is_empty = any(size == 0 for size, _ in levels)
        return self.reason_no_batch_is_kept is None and not is_empty and not self._repeats_much(x, levels)

    def _repeats_much(self, x: Sequence[torch.Tensor], levels: Levels) -> bool:
        """Whether recording for a batch multiplies each small example by its own copy of large weights.

        Running the forward again in the backward is quicker then: there one product with the weights does for all.
        """
        if not levels:
            return False
        has_axis = [any(dims[i] is not None for _, dims in levels) for i in range(len(x))]
        shared = max((x[i].numel() for i in self.ins if not has_axis[i]), default=0)
        count = math.prod(size for size, _ in levels)
        own = max((t.numel() // count for t, batched in zip(x, has_axis, strict=True) if batched), default=0)
        return shared > _MUCH * own

    def _record(self, f: Flat, x: Sequence[torch.Tensor], levels: Levels, sizes: Any) -> tuple[int, Any]:
        """The number of the kept graph and the outputs; no outputs where the plain function is to run."""
        try:
            return self._record_once(f, x, levels, sizes)
        except OUT_OF_MEMORY:
            pass  # try again outside of `except`: the traceback holds what the function has allocated
        if _kept.free(x[0].device):
            with contextlib.suppress(*OUT_OF_MEMORY):
                return self._record_once(f, x, levels, sizes)
        self._note_out_of_memory()
        return _NO_GRAPH, None

    def _record_once(self, f: Flat, x: Sequence[torch.Tensor], levels: Levels, sizes: Any) -> tuple[int, Any]:
        graph = _Graph(self, levels, sizes, x[0].device)
        uses = [storage_uses(t.untyped_storage()) for t in x]
        try:
            y = self._run_recorded(f, x, levels, graph)
        except HiddenGradientError as error:  # for one example it is shown
            self._give_up_batches(str(error))
            return _NO_GRAPH, None
        except OUT_OF_MEMORY:
            raise
        except Exception as error:
            raise _NotRecordedError(f"recording failed, {first_line(error)}") from None
        kept_by_outputs = collections.Counter(t.untyped_storage()._cdata for t in y)
        for t, before in zip(x, uses, strict=True):
            if storage_uses(t.untyped_storage()) - kept_by_outputs[t.untyped_storage()._cdata] > before:
                self.give_up("the function keeps its arguments in the graph")
                return _NO_GRAPH, y
        if self.reason_not_kept is not None or not graph.outs:
            return _NO_GRAPH, y
        return _keep(graph), y

    def _run_recorded(self, f: Flat, x: Sequence[torch.Tensor], levels: Any, graph: _Graph) -> Any:
        lent = {t.untyped_storage().data_ptr(): i for i, t in enumerate(x) if t.numel()}
        dtypes = [t.dtype for t in x]
        offsets = [t.storage_offset() for t in x]
        # These two functions may not refer to the graph, whose nodes refer to them: such a cycle is never collected.
        operands, storages = graph.operands, graph.storages

        def pack(t: torch.Tensor) -> Any:
            if not t.numel():  # an empty operand has no memory to keep, but its tensor would count as kept
                t = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
            storage = t.untyped_storage()
            index = lent.get(storage.data_ptr())
            if index is None or t.dtype != dtypes[index]:
                if not _is_parameter(t):
                    storages[storage._cdata] = t.device, storage.nbytes()
                # A result that its own node saves comes here with that node as its `grad_fn`
                # (`SavedVariable::SavedVariable` in torch/csrc/autograd): a cycle that no collector sees.
                return t.detach(), t._version
            offset = int(t.storage_offset() - offsets[index])
            return _OfInput(index, tuple(t.shape), t.stride(), offset, t.is_conj())

        def unpack(saved: Any) -> torch.Tensor:
            if not isinstance(saved, _OfInput):
                t, version = saved
                if t._version != version:  # with hooks, torch leaves this check to them
                    raise RuntimeError(
                        "one of the variables needed for gradient computation has been modified by an inplace "
                        f"operation: a {t.dtype} of shape {tuple(t.shape)} is at version {t._version}, not {version}. "
                        "Clone it before the operation."
                    )
                return t
            base = operands[saved.index]
            view = base.as_strided(saved.shape, saved.strides, base.storage_offset() + saved.offset)
            return view.conj() if saved.is_conj else view

        handles = [t.detach() for t in x]  # of their own, because `x.requires_grad_()` puts them into the graph
        for i in self.ins:
            handles[i] = with_batch_axes(x[i], i, levels).detach().requires_grad_()
            graph.ins[i] = torch.autograd.graph.get_gradient_edge(handles[i])
        known = list(map(sys.getrefcount, handles))
        operands.extend(x)
        try:
            with (
                torch.enable_grad(),
                torch.autograd.graph.saved_tensors_hooks(pack, unpack),
                modules_in_use(until_the_end=False) as use,
            ):
                y = f(*handles)
        finally:
            operands.clear()
        if use.is_kept:
            self.give_up("the backward runs code of a module")
        graph.outs = {i: (_edge_to(t), t.dtype) for i, t in enumerate(y) if t.requires_grad}
        answer = tuple(t.detach() for t in y)
        del y  # which may be inputs
        is_kept = list(map(operator.gt, map(sys.getrefcount, handles), known))
        for t, is_one_kept in zip(handles, is_kept, strict=True):
            if t.requires_grad and t.is_leaf and not is_one_kept:
                t.data = t.new_empty(0)  # its edge keeps it alive, but not the memory of XLA
        return answer

    # --- backward --------------------------------------------------------------------------------------------------

    def backward(
        self,
        x: Sequence[torch.Tensor],
        residuals: Sequence[torch.Tensor],
        ins: Sequence[int],
        cotangents: Mapping[int, torch.Tensor],
        levels: Levels,
    ) -> tuple[torch.Tensor, ...] | None:
        """The cotangents of `ins` from the kept graph; None if there is none, or it does not fit."""
        self.failure = None
        graph = self.take(*residuals)
        if graph is None:
            return None
        outer_first = list(reversed(levels))
        extra = [k for k, (_, dims) in enumerate(outer_first) if dims[len(x)] is None]  # which the number does not have
        of_graph = tuple((size, dims[: len(x)]) for size, dims in levels if dims[len(x)] is not None)
        if of_graph != graph.levels or len(extra) > 1:  # operands with other axes lie otherwise in memory
            return None
        axis = extra[0] if extra else None
        if axis is not None and any(outer_first[axis][1][i] is not None for i in range(len(x))):
            return None
        return self._pull(graph, x, ins, cotangents, axis, levels)

    def _pull(
        self,
        graph: _Graph,
        x: Sequence[torch.Tensor],
        ins: Sequence[int],
        cotangents: Mapping[int, torch.Tensor],
        axis: int | None,
        levels: Levels,
    ) -> tuple[torch.Tensor, ...] | None:
        outs = [(*graph.outs[i], ct) for i, ct in cotangents.items() if i in graph.outs]
        pairs = [(edge, _with_front(_compat.conj(ct), axis).to(dtype)) for edge, dtype, ct in outs]
        grads: Sequence[torch.Tensor | None] = [None] * len(ins)
        graph.operands.extend(x)
        try:
            if pairs:
                grads = _grad(graph, ins, pairs) if axis is None else self._pull_many(graph, ins, pairs)
        except OUT_OF_MEMORY:
            _kept.free(x[0].device)
            self._note_out_of_memory()
            return None
        except Exception as error:  # if the backward itself is at fault, it raises again after another forward
            self.failure = f"the backward of a kept graph failed, {first_line(error)}"
            return None
        finally:
            graph.operands.clear()
        return tuple(
            torch.zeros_like(with_batch_axes(x[i], i, levels)) if g is None else _with_back(g, axis)
            for i, g in zip(ins, grads, strict=True)
        )

    def _pull_many(self, graph: _Graph, ins: Sequence[int], pairs: Pairs) -> Sequence[torch.Tensor | None]:
        """The gradients for many cotangents: at once, or one after another where torch cannot batch the backward."""
        if self.can_batch and not is_wrong_in_batches(edge.node for edge, _ in pairs):
            try:
                return _grad(graph, ins, pairs, retain_graph=True, is_grads_batched=True)
            except OUT_OF_MEMORY:  # one after another takes less
                pass
            except Exception as error:
                logger.info("%s: the kept graph cannot be batched (%s)", self.label, first_line(error))
                self.can_batch = False
        count = len(pairs[0][1])
        rows = [_grad(graph, ins, [(edge, ct[k]) for edge, ct in pairs], retain_graph=True) for k in range(count)]
        return [None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True)]

    def drop(self, residuals: Sequence[torch.Tensor]) -> None:
        """Forward mode needs no residuals: from now on they are kept only once a backward is asked for."""
        self.is_pushed = True
        self.take(*residuals)

    def take(self, residual: torch.Tensor) -> _Graph | None:
        """Remove the graph that a residual stands for; None if it is gone, or the residual stands for no single one."""
        graph = self.waiting.take(residual)
        if self.waiting.mixed_batches >= _MOST_MIXED and self.reason_no_batch_is_kept is None:
            self._give_up_batches("JAX mixes the examples of several calls, as a batch of `jax.lax.cond` does")
        return graph


def _edge_to(t: torch.Tensor) -> torch.autograd.graph.GradientEdge:
    """Where the backward of a result begins.

    In torch 2.6 the node of an `autograd.Function` dies with its result, unless a node of torch's own follows it.
    """
    if isinstance(t.grad_fn, torch.autograd.function.BackwardCFunction):
        with torch.enable_grad():
            t = t.view_as(t)
    return torch.autograd.graph.get_gradient_edge(t)


def _is_parameter(t: torch.Tensor) -> bool:
    """Whether a saved tensor is one that the function refers to anyway, or a view of it."""
    base = t if t._base is None else t._base
    return base.is_leaf and base.requires_grad


def _with_front(t: torch.Tensor, axis: int | None) -> torch.Tensor:
    return t if axis is None else t.movedim(axis, 0)


def _with_back(t: torch.Tensor, axis: int | None) -> torch.Tensor:
    t = _compat.conj(_compat.materialised(t))
    return t if axis is None else t.movedim(0, axis)


def _grad(graph: _Graph, ins: Sequence[int], pairs: Pairs, **options: Any) -> Sequence[torch.Tensor | None]:
    edges, cotangents = zip(*pairs, strict=True)
    return torch.autograd.grad(edges, [graph.ins[i] for i in ins], cotangents, allow_unused=True, **options)


def _draws(f: Flat, x: Sequence[torch.Tensor]) -> bool:
    """Whether it was `f` that drew from torch's generators, which every thread may use: it is run once more."""
    operations = RandomOperations()
    try:
        with operations:
            f(*x)
    except Exception as error:  # what runs without a dispatch mode need not run in one
        logger.info("cannot tell whether a function draws random numbers (%s)", first_line(error))
        return True
    return operations.found


def warn_if_random(f: Flat, shared: Shared) -> Flat:
    """`f`, which runs a forward again, with a warning if it draws random numbers: other ones than the forward drew."""
    checks = itertools.count()

    def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if shared.has_key or shared.is_random or next(checks) >= _CHECKS:
            return f(*x)
        states = generator_states()
        answer = f(*x)
        if not all(map(torch.equal, states, generator_states())) and _draws(f, x):
            shared.is_random = True
            warn(
                f"{shared.name} draws random numbers, and its derivative drew other ones than its value. "
                "Wrap it with `rng=True` and pass a JAX key.",
                T2jWarning,
            )
        return answer

    return run
