"""The forward's autograd graph, kept alive until its backward, so that the forward runs once.

JAX's residual is one integer for each example. Whatever happens to them (XLA may merge, hoist, drop or repeat calls,
JAX and users mix examples), a backward that does not get exactly the numbers of a graph, or whose graph is gone, runs
the forward again: right results never depend on a kept graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from t2j_core import TensorEscapeError
from t2j_core.extend import FlatFunction, Leaf

from .. import _compat
from .._base.errors import OUT_OF_MEMORY, first_line
from .._batching.at_once import HiddenGradientError
from .._batching.batch_axes import BatchAxes
from . import example_numbers, tickets
from .backward import BackwardError, Fitting, fitting, pulled_back
from .keeping import Keeping
from .kept_graph import Gradients, KeptGraph
from .protocol import DifferentiatedFunction, Residuals
from .recording import Recording, record
from .recording_on_windows import record_on
from .store import kept_graphs
from .waiting import Waiting
from .window_policy import WindowPolicy
from .windows import Windows

_NUMBER = Leaf((), np.dtype(np.int32), torch.int32)
_NOT_KEPT = example_numbers.NOT_KEPT
_MOST_MIXED = 3  # batches in a row whose graphs are of no use

Results = tuple[torch.Tensor, ...]


class _NotRecordedError(Exception):
    """A run that was to be recorded has failed."""


class AutogradGraphs(Residuals):
    """Keeps the autograd graphs of one function."""

    leaves = (_NUMBER,)
    uses_tickets = True

    def __init__(self, function: DifferentiatedFunction) -> None:
        super().__init__(function)
        self._keeping = Keeping(function)
        self._waiting = Waiting(kept_graphs)
        self._policy = WindowPolicy(function)

    # --- forward ---------------------------------------------------------------------------------------------------

    def forward(self, value: FlatFunction, to_record: FlatFunction, axes: BatchAxes) -> FlatFunction:
        """The results, and for each example its number in a kept graph."""
        sizes = axes.sizes

        def run(*x: torch.Tensor) -> Results:
            number, y, failure = _NOT_KEPT, None, None
            if self._keeping.is_wanted(x, axes) and not _compat.in_transform():
                try:
                    number, y = self._recorded(to_record, x, axes)
                except _NotRecordedError as error:
                    failure = str(error)
            results = value(*x) if y is None else y  # if the function itself is at fault, it raises again
            if failure is not None:
                self._keeping.give_up(failure)
            tickets.leave(tickets.NOTHING if number == _NOT_KEPT else number)
            return (*results, example_numbers.as_tensor(number, sizes, x[0].device))

        return run

    def _recorded(self, f: FlatFunction, x: Sequence[torch.Tensor], axes: BatchAxes) -> tuple[int, Results | None]:
        """The number of the kept graph and the results; no results where the value is to run instead."""
        try:
            return self._recorded_once(f, x, axes)
        except OUT_OF_MEMORY:
            pass  # try again outside of `except`: the traceback holds what the function has allocated
        if kept_graphs.free(x[0].device):
            with contextlib.suppress(*OUT_OF_MEMORY):
                return self._recorded_once(f, x, axes)
        self._keeping.note_out_of_memory()
        return _NOT_KEPT, None

    def _recorded_once(self, f: FlatFunction, x: Sequence[torch.Tensor], axes: BatchAxes) -> tuple[int, Results | None]:
        try:
            recording = self._record(f, x, axes)
        except HiddenGradientError as error:  # `torch.func.vjp` does not hide it, so the backward recomputes
            self._keeping.give_up_batches(str(error))
            return _NOT_KEPT, None
        except (TensorEscapeError, *OUT_OF_MEMORY):
            raise
        except Exception as error:
            raise _NotRecordedError(f"recording failed, {first_line(error)}") from None
        return self._kept(recording), recording.results

    def _record(self, f: FlatFunction, x: Sequence[torch.Tensor], axes: BatchAxes) -> Recording:
        windows = None if axes else self._policy.windows(x)
        if windows is not None:
            return record_on(windows, f, x, self.function.ins, self._policy)
        recording = record(f, x, self.function.ins, axes)
        if not axes:
            self._policy.note(recording)
        return recording

    def _kept(self, recording: Recording) -> int:
        if recording.reason_not_kept is not None:
            self._keeping.give_up(recording.reason_not_kept)
        if self._keeping.is_given_up or not recording.graph.out_edges:
            return _NOT_KEPT
        return self._waiting.keep(recording.graph)

    # --- linear maps -----------------------------------------------------------------------------------------------

    def pullback(
        self, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes, recompute: FlatFunction
    ) -> FlatFunction:
        """From the kept graph, if there is one and it fits."""
        self._keeping.has_pullback = True
        n, m = self.places
        fits = fitting(axes, n)

        def run(*a: torch.Tensor) -> Results:
            cotangents, failure = dict(zip(outs, a[m:], strict=True)), None
            try:
                grads = self._from_graph(a[n], fits, a[:n], ins, cotangents)
            except BackwardError as error:
                grads, failure = None, str(error)
            if grads is None:
                results = recompute(*a[:n], *a[m:])  # if the backward itself is at fault, it raises again
                if failure is not None:
                    self._keeping.give_up(failure)
                return results
            return tuple(
                torch.zeros_like(axes.expanded(a[i], i)) if g is None else g for i, g in zip(ins, grads, strict=True)
            )

        return run

    def _from_graph(
        self,
        residual: torch.Tensor,
        fits: Fitting | None,
        x: Sequence[torch.Tensor],
        ins: Sequence[int],
        cotangents: Mapping[int, torch.Tensor],
    ) -> Gradients | None:
        """The cotangents of `ins` from the graph that a residual stands for; None if none fits."""
        graph = self._take(residual)
        if graph is None or fits is None or graph.axes != fits.axes:
            return None
        try:
            grads = pulled_back(graph, x, ins, cotangents, fits.of_cotangents, self._keeping)
        except BackwardError:
            graph.saved.move_all(x)
            raise
        if isinstance(graph.saved, Windows):
            graph.free()
            self._policy.end(graph.saved, x)
        return grads

    def pushforward(self, recompute: FlatFunction) -> FlatFunction:
        """The pushforward, which frees the graph. From now on graphs are kept only once a backward is asked for."""
        n, m = self.places

        def run(*a: torch.Tensor) -> Results:
            self._keeping.has_run_forward_mode = True
            self._take(a[n])
            return recompute(*a[:n], *a[m:])

        return run

    def _take(self, residual: torch.Tensor) -> KeptGraph | None:
        """Remove the graph that a residual stands for; None if it is gone, or there is no single one."""
        graph = self._waiting.take(residual)
        if self._waiting.mixed_batches >= _MOST_MIXED:
            self._keeping.give_up_batches("JAX mixes the examples of several calls, as a batch of `jax.lax.cond` does")
        return graph
