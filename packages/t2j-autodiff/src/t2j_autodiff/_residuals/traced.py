"""`residuals="graph"`: saved tensors as JAX arrays, so that XLA and `jax.checkpoint` manage their memory.

Torch's ahead-of-time autograd traces forward and backward once, as graphs of operations without Python. A function
whose Python depends on data, or that needs tracing by `torch.compile`, cannot be traced so; it keeps its autograd
graph instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from t2j_core import OutputError, PerformanceWarning, dtype_t2j
from t2j_core.extend import (
    FlatFunction,
    Leaf,
    canonical,
    describe,
    placeholders,
    progress,
    reason_of,
    seeded_by,
    size_of,
    warn,
    warn_not_compiled,
)
from torch.fx import GraphModule

from .. import _compat
from .._base.errors import first_line
from .._batching.batch_axes import BatchAxes
from .._batching.vmap import over_axes
from .direct import is_contiguous, is_direct, rearranged
from .graphs import call_of, outputs_of
from .protocol import DifferentiatedFunction, Residuals
from .tracing import NothingToKeepError, Traced, is_of_no_dropout, trace

_ONCE = "It is done once for each signature; the first one of a process also loads torch's compiler."

Order = list[int]
"""The order of axes in which a tensor is contiguous, or nearest to it. As residuals, tensors are permuted to it."""


class TracedFunction(Residuals):
    """A traced forward and backward of one function."""

    is_traced = True
    _is_as_traced = False  # whether a run has saved what the trace says

    def __init__(self, function: DifferentiatedFunction, traced: Traced) -> None:
        super().__init__(function)
        operands, cotangents = placeholders(traced.forward), placeholders(traced.backward)
        saved = outputs_of(traced.forward)[len(function.results) :]
        self._traced_on: torch.device = operands[0].meta["val"].device
        self._on_device = {self._traced_on: traced}
        self._n_saved = len(saved)
        # What is saved: operands, values that are not read, and other values. Only the last are residuals.
        self._operands = {k: operands.index(node) for k, node in enumerate(saved) if node in operands}
        self._unread = {k: node.meta["val"] for k, node in enumerate(saved) if is_of_no_dropout(node)}
        self._own = [k for k in range(len(saved)) if k not in self._operands and k not in self._unread]
        values = [saved[k].meta["val"] for k in self._own]
        if not all(isinstance(value, torch.Tensor) for value in values):
            raise NotImplementedError("it saves sizes")
        self._orders = [_order(value) for value in values]
        # The backward was traced for cotangents with the strides of the results.
        self._cotangent_orders = [_order(node.meta["val"]) for node in cotangents[len(saved) :]]
        self.leaves = tuple(_leaf(value.permute(order)) for value, order in zip(values, self._orders, strict=True))
        count, nbytes = len(self.leaves), sum(leaf.nbytes for leaf in self.leaves)
        function.explain(
            f"{count} array{'' if count == 1 else 's'} ({size_of(nbytes)}) from a "
            f"{'compiled' if function.decisions.compiles else 'traced'} graph"
        )

    @staticmethod
    def of(function: DifferentiatedFunction) -> TracedFunction | None:
        """Trace a function; None where that is not possible, with a warning unless there is nothing to keep."""
        try:
            name, compiles = function.decisions.name, function.decisions.compiles
            with progress("tracing the derivative of", name, _ONCE, function.decisions.noted):
                traced = trace(name, function.flat, function.operands, function.ins, compiles=compiles)
            return TracedFunction(function, traced)
        except NothingToKeepError:
            return None
        except Exception as error:
            if compiles:
                warn_not_compiled(name, f"with its derivative: {reason_of(error)}", function.decisions.noted)
            elif function.decisions.is_captured:
                warn(
                    f"{name} cannot be traced with its derivative ({first_line(error)}); its backward runs the forward "
                    "again, because command buffers keep no autograd graph.",
                    PerformanceWarning,
                )
            else:
                warn(
                    f'{name} cannot be traced for `residuals="graph"` ({first_line(error)}); its autograd graph is '
                    'kept instead, as with `residuals="auto"`.',
                    PerformanceWarning,
                )
            return None

    def _on(self, device: torch.device) -> Traced:
        """Forward and backward for operands on `device`."""
        if device not in self._on_device:
            self._on_device[device] = self._on_device[self._traced_on].moved(self._traced_on, device)
        return self._on_device[device]

    # --- graphs for the compiler -----------------------------------------------------------------------------------

    def forward_graph(self, device: torch.device) -> GraphModule | None:
        """See `Residuals`."""
        n, count = len(self.function.results), len(self.function.operands)
        if not self._is_direct(device):
            return None
        return rearranged(self._on(device).forward, range(count), count, [*range(n), *(n + k for k in self._own)])

    def pullback_graph(self, ins: tuple[int, ...], outs: tuple[int, ...], device: torch.device) -> GraphModule | None:
        """See `Residuals`."""
        traced, (n, m) = self._on(device), self.places
        if not self._is_direct(device) or not set(traced.differentiated) <= set(outs):
            return None
        places = self._operands | {k: n + i for i, k in enumerate(self._own)}
        cotangents = [m + outs.index(i) for i in traced.differentiated]
        return rearranged(
            traced.backward, [*(places[k] for k in range(self._n_saved)), *cotangents], m + len(outs), ins
        )

    def _is_direct(self, device: torch.device) -> bool:
        """Whether the traced graphs are what the compiler can take, on the device that they were traced on."""
        leaves = (*self.function.operands, *self.function.results, *self.leaves)
        values = [node for k, node in enumerate(placeholders(self._on(device).backward)) if k not in self._operands]
        fits = device.type == self._traced_on.type == "cpu" and not self._unread
        return fits and all(map(is_direct, leaves)) and all(map(is_contiguous, values))

    # --- forward ---------------------------------------------------------------------------------------------------

    def forward(self, value: FlatFunction, to_record: FlatFunction, axes: BatchAxes) -> FlatFunction:
        """The results of the traced forward, and what it saves."""
        n = len(self.function.results)

        def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with torch.no_grad(), self._drawing(x[0]):
                y = self._on(x[0].device).forward(*x)
            own = [_permuted(y[n + k], order).resolve_conj() for k, order in zip(self._own, self._orders, strict=True)]
            if not self._is_as_traced:
                self._check_saved(own)
                self._is_as_traced = True
            return (*y[:n], *own)

        leaves = [*self.function.results, *self.leaves]
        return over_axes(run, leaves, axes, self.function.decisions, "derivative")

    def _check_saved(self, own: Sequence[torch.Tensor]) -> None:
        """Raise where an operation saves something else than it did in the trace, which had no data."""
        for k, leaf, t in zip(self._own, self.leaves, own, strict=True):
            if (t.shape, t.dtype) != (leaf.shape, leaf.torch_dtype):
                node = outputs_of(self._on_device[self._traced_on].forward)[len(self.function.results) + k]
                operation = call_of(node)[0].target
                raise OutputError(
                    describe(
                        f"{self.function.decisions.name} was traced with its derivative, but {operation} saves "
                        "something else than its kernel for tensors without data, which torch traces with.",
                        expected=f"{leaf.torch_dtype} of shape {leaf.shape}",
                        got=f"{t.dtype} of shape {tuple(t.shape)}",
                        remedy='Pass residuals="auto", which traces nothing; the fault is that of the operation.',
                    )
                )

    def _drawing(self, key: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        decisions = self.function.decisions
        return seeded_by(key, on_device=decisions.draws_on_device) if decisions.has_key else contextlib.nullcontext()

    # --- backward --------------------------------------------------------------------------------------------------

    def pullback(
        self, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes, recompute: FlatFunction
    ) -> FlatFunction:
        """From the saved tensors."""
        n, m = self.places

        def run(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            device, given = a[0].device, dict(zip(outs, a[m:], strict=True))
            saved, cotangents = self._saved(a[:n], a[n:m]), self._cotangents(given, device)
            with torch.no_grad():
                grads = self._on(device).backward(*saved, *cotangents)
            return tuple(
                torch.zeros_like(a[i]) if grads[i] is None else _compat.conj(_compat.materialised(grads[i]))
                for i in ins
            )

        leaves = [self.function.operands[i] for i in ins]
        of_pullback = axes.of_first(m).with_full(len(outs))
        return over_axes(run, leaves, of_pullback, self.function.decisions, "derivative")

    def _saved(self, x: Sequence[torch.Tensor], residuals: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """What the backward takes, from operands and residuals."""
        own = (_permuted(t, _inverse(order)) for t, order in zip(residuals, self._orders, strict=True))
        saved = {k: x[i] for k, i in self._operands.items()}
        saved |= zip(self._own, own, strict=True)
        saved |= {k: torch.empty(t.shape, dtype=t.dtype, device=x[0].device) for k, t in self._unread.items()}
        return (saved[k] for k in range(self._n_saved))

    def _cotangents(self, given: Mapping[int, torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
        """Those that the backward takes, with the strides that it was traced for."""
        differentiated = self._on_device[self._traced_on].differentiated
        for i, order in zip(differentiated, self._cotangent_orders, strict=True):
            leaf = self.function.results[i]
            if i in given:
                ct = _compat.conj(given[i]).to(leaf.torch_dtype)
            else:
                ct = torch.zeros(leaf.shape, dtype=leaf.torch_dtype, device=device)
            yield _permuted(_permuted(ct, order).contiguous(), _inverse(order))


def _order(value: torch.Tensor) -> Order:
    return sorted(range(value.ndim), key=lambda axis: -value.stride()[axis])


def _permuted(t: torch.Tensor, order: Order) -> torch.Tensor:
    return t if order == sorted(order) else t.permute(order)


def _inverse(order: Order) -> Order:
    return sorted(range(len(order)), key=order.__getitem__)


def _leaf(value: torch.Tensor) -> Leaf:
    return Leaf(tuple(value.shape), canonical(dtype_t2j(value.dtype)), value.dtype)
