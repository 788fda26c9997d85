"""The forward's autograd graph, kept alive until its backward, so that the forward runs once.

JAX's residual is one integer for each example. Whatever happens to them (XLA may merge, hoist, drop or repeat calls,
JAX and users mix examples), a backward that does not get exactly the numbers of a graph, or whose graph is gone, runs
the forward again: right results never depend on a kept graph.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from t2j_core.extend import Leaf

from .. import _compat
from .._base.errors import OUT_OF_MEMORY
from .._batching.at_once import HiddenGradientError
from .._batching.batch_axes import BatchAxes
from .._derivatives.reverse_mode import Flat, first_line
from .._mends.wrong_in_batches import is_wrong_in_batches
from . import example_numbers, tickets
from .kept_graph import Gradients, KeptGraph, Pairs
from .protocol import FlatFunction, Residuals
from .recording import Recording, record
from .store import kept_graphs
from .waiting import Waiting

logger = logging.getLogger("t2j_autodiff")

_NUMBER = Leaf((), np.dtype(np.int32), torch.int32)
_NOT_KEPT = example_numbers.NOT_KEPT
_MUCH = 16
_MOST_MIXED = 3  # batches in a row whose graphs are of no use

Results = tuple[torch.Tensor, ...]


class _NotRecordedError(Exception):
    """A run that was to be recorded has failed."""


class _BackwardError(Exception):
    """The backward of a kept graph has failed."""


class _Fitting(NamedTuple):
    """Which graph a backward can use: one of the batch `axes`, where only cotangents have the axis `of_cotangents`."""

    axes: BatchAxes
    of_cotangents: int | None


class AutogradGraphs(Residuals):
    """Keeps the autograd graphs of one function."""

    leaves = (_NUMBER,)
    leaves_tickets = True

    def __init__(self, function: FlatFunction) -> None:
        super().__init__(function)
        self._waiting = Waiting(kept_graphs)
        self._reason_not_kept: str | None = None
        self._reason_no_batch_is_kept: str | None = None
        self._is_reversed = False  # a backward has been asked for
        self._is_pushed = False  # a forward-mode derivative has run
        self._can_batch = True  # one graph can be pulled back along many cotangents at once
        self._calls_out_of_memory = 0
        function.explain("kept autograd graph")

    # --- what it does from now on ----------------------------------------------------------------------------------

    def _give_up(self, reason: str) -> None:
        """Run the forward again in every backward."""
        self._reason_not_kept = reason
        self.function.explain(f"recompute ({reason})")

    def _give_up_batches(self, reason: str) -> None:
        """Run the forward again in the backward of every batch: there `torch.func.vjp` shows the function all."""
        self._reason_no_batch_is_kept = reason
        self.function.explain(f"recompute ({reason})", " in batches")

    def _note_out_of_memory(self) -> None:
        """Note a call whose forward runs again because memory was short. Later calls keep their graphs."""
        self._calls_out_of_memory += 1
        self.function.explain(
            f"kept autograd graph, except in calls that ran out of memory ({self._calls_out_of_memory})"
        )

    # --- forward ---------------------------------------------------------------------------------------------------

    def forward(self, value: Flat, to_record: Flat, axes: BatchAxes) -> Flat:
        """The results, and for each example its number in a kept graph."""
        sizes = axes.sizes

        def run(*x: torch.Tensor) -> Results:
            number, y, failure = _NOT_KEPT, None, None
            if self._is_wanted(x, axes) and not _compat.in_transform():
                try:
                    number, y = self._recorded(to_record, x, axes)
                except _NotRecordedError as error:
                    failure = str(error)
            results = value(*x) if y is None else y  # if the function itself is at fault, it raises again
            if failure is not None:
                self._give_up(failure)
            tickets.leave(tickets.NOTHING if number == _NOT_KEPT else number)
            return (*results, example_numbers.as_tensor(number, sizes, x[0].device))

        return run

    def _is_wanted(self, x: Sequence[torch.Tensor], axes: BatchAxes) -> bool:
        if self._reason_not_kept is not None or (self._is_pushed and not self._is_reversed):
            return False
        if not axes:
            return True
        return self._reason_no_batch_is_kept is None and 0 not in axes.sizes and not self._repeats_much(x, axes)

    def _repeats_much(self, x: Sequence[torch.Tensor], axes: BatchAxes) -> bool:
        """Whether recording for a batch multiplies each small example by its own copy of large weights.

        Running the forward again in the backward is quicker then: there one product with the weights serves all.
        """
        has_axis = [any(axis.has(i) for axis in axes) for i in range(len(x))]
        of_all = max((x[i].numel() for i in self.function.ins if not has_axis[i]), default=0)
        count = math.prod(axes.sizes)
        of_example = max((t.numel() // count for t, batched in zip(x, has_axis, strict=True) if batched), default=0)
        return of_all > _MUCH * of_example

    def _recorded(self, f: Flat, x: Sequence[torch.Tensor], axes: BatchAxes) -> tuple[int, Results | None]:
        """The number of the kept graph and the results; no results where the value is to run instead."""
        try:
            return self._recorded_once(f, x, axes)
        except OUT_OF_MEMORY:
            pass  # try again outside of `except`: the traceback holds what the function has allocated
        if kept_graphs.free(x[0].device):
            with contextlib.suppress(*OUT_OF_MEMORY):
                return self._recorded_once(f, x, axes)
        self._note_out_of_memory()
        return _NOT_KEPT, None

    def _recorded_once(self, f: Flat, x: Sequence[torch.Tensor], axes: BatchAxes) -> tuple[int, Results | None]:
        try:
            recording = record(f, x, self.function.ins, axes)
        except HiddenGradientError as error:  # a function of one example sees it
            self._give_up_batches(str(error))
            return _NOT_KEPT, None
        except OUT_OF_MEMORY:
            raise
        except Exception as error:
            raise _NotRecordedError(f"recording failed, {first_line(error)}") from None
        return self._kept(recording), recording.results

    def _kept(self, recording: Recording) -> int:
        if recording.reason_not_kept is not None:
            self._give_up(recording.reason_not_kept)
        if self._reason_not_kept is not None or not recording.graph.out_edges:
            return _NOT_KEPT
        return self._waiting.keep(recording.graph)

    # --- backward --------------------------------------------------------------------------------------------------

    def pullback(self, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes, recompute: Flat) -> Flat:
        """From the kept graph, if there is one and it fits."""
        self._is_reversed = True
        n, m = self.places
        fitting = _fitting(axes, n)

        def run(*a: torch.Tensor) -> Results:
            cotangents, failure = dict(zip(outs, a[m:], strict=True)), None
            try:
                grads = self._pulled(a[n], a[:n], ins, cotangents, fitting)
            except _BackwardError as error:
                grads, failure = None, str(error)
            if grads is None:
                results = recompute(*a[:n], *a[m:])  # if the backward itself is at fault, it raises again
                if failure is not None:
                    self._give_up(failure)
                return results
            return tuple(
                torch.zeros_like(axes.expanded(a[i], i)) if g is None else g for i, g in zip(ins, grads, strict=True)
            )

        return run

    def _pulled(
        self,
        residual: torch.Tensor,
        x: Sequence[torch.Tensor],
        ins: Sequence[int],
        cotangents: Mapping[int, torch.Tensor],
        fitting: _Fitting | None,
    ) -> Gradients | None:
        """The cotangents of `ins` from the graph that a residual stands for; None if none fits."""
        graph = self._take(residual)
        if graph is None or fitting is None or graph.axes != fitting.axes:
            return None
        axis = fitting.of_cotangents
        outs = [(*graph.out_edges[i], ct) for i, ct in cotangents.items() if i in graph.out_edges]
        pairs = [(edge, _with_front(_compat.conj(ct), axis).to(dtype)) for edge, dtype, ct in outs]
        if not pairs:
            return [None] * len(ins)
        try:
            with graph.saved.lent(x):
                grads = graph.gradients(ins, pairs) if axis is None else self._of_many(graph, ins, pairs)
        except OUT_OF_MEMORY:
            kept_graphs.free(x[0].device)
            self._note_out_of_memory()
            return None
        except Exception as error:
            raise _BackwardError(f"the backward of a kept graph failed, {first_line(error)}") from None
        return [None if g is None else _with_back(_compat.conj(_compat.materialised(g)), axis) for g in grads]

    def _of_many(self, graph: KeptGraph, ins: Sequence[int], pairs: Pairs) -> Gradients:
        """The gradients for many cotangents: at once, or one after another where torch cannot batch the backward."""
        if self._can_batch and not is_wrong_in_batches(edge.node for edge, _ in pairs):
            try:
                return graph.gradients_at_once(ins, pairs)
            except OUT_OF_MEMORY:  # one after another takes less
                pass
            except Exception as error:
                logger.info("%s: the kept graph cannot be batched (%s)", self.function.label, first_line(error))
                self._can_batch = False
        return graph.gradients_in_turn(ins, pairs)

    def pushforward(self, recompute: Flat) -> Flat:
        """The pushforward, which frees the graph. From now on graphs are kept only once a backward is asked for."""
        n, m = self.places

        def run(*a: torch.Tensor) -> Results:
            self._is_pushed = True
            self._take(a[n])
            return recompute(*a[:n], *a[m:])

        return run

    def _take(self, residual: torch.Tensor) -> KeptGraph | None:
        """Remove the graph that a residual stands for; None if it is gone, or the residual stands for no single one."""
        graph = self._waiting.take(residual)
        if self._waiting.mixed_batches >= _MOST_MIXED and self._reason_no_batch_is_kept is None:
            self._give_up_batches("JAX mixes the examples of several calls, as a batch of `jax.lax.cond` does")
        return graph


def _fitting(axes: BatchAxes, residual: int) -> _Fitting | None:
    """Which graph fits a backward over `axes`, whose operands are those before the residual; None if none does.

    The operands of another graph would lie differently in memory than those of the backward.
    """
    extra = [k for k, axis in enumerate(axes) if not axis.has(residual)]
    if len(extra) > 1 or any(axes[k].has(i) for k in extra for i in range(residual)):
        return None
    of_graph = BatchAxes(axis for axis in axes if axis.has(residual)).of_first(residual)
    return _Fitting(of_graph, extra[0] if extra else None)


def _with_front(t: torch.Tensor, axis: int | None) -> torch.Tensor:
    return t if axis is None else t.movedim(axis, 0)


def _with_back(t: torch.Tensor, axis: int | None) -> torch.Tensor:
    return t if axis is None else t.movedim(0, axis)
