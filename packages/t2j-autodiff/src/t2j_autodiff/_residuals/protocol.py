"""The contract between the rules of derivatives and the ways to get residuals."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from t2j_core.extend import FlatFunction, Leaf, Lending
from torch.fx import GraphModule

from .._base.decisions import Decisions
from .._batching.batch_axes import BatchAxes


@dataclass(frozen=True, eq=False)
class DifferentiatedFunction:
    """A flat function of one example, and which of its derivatives are wanted."""

    flat: FlatFunction
    operands: Sequence[Leaf]
    results: Sequence[Leaf]
    ins: tuple[int, ...]  # the operands that it is differentiated with respect to
    outs: tuple[int, ...]  # the results that can be differentiated
    decisions: Decisions
    label: str  # its signature, as `explain()` shows it
    lending: Lending | None = None  # of its operands

    def explain(self, text: str, part: str = "") -> None:
        """Set the line of `explain()` that says how derivatives of the function, or of a part, get their residuals."""
        self.decisions.explain_residuals(f"{self.label}{part}", text)


class Residuals(abc.ABC):
    """How the backward of one function gets what its forward has computed.

    A new way is a subclass of this and a line in `choice.py`; if users choose it by name, also a value of
    `ResidualsOption`. An instance belongs to one `DifferentiatedFunction`. It declares its residual arrays in `leaves`
    and implements `forward` and `pullback`. It calls `function.explain` when it is made and whenever what it does
    changes.

    JAX owns the residuals between forward and backward. It may merge, repeat, reorder or drop either call, hand the
    same residuals to several backwards, and combine those of several calls or examples. Residuals that are plain
    values survive all that. Where a residual stands for something outside of JAX, `pullback` checks that it is
    complete, and calls `recompute` otherwise. A backward gets all operands again, so the memory that XLA has lent to a
    forward must not be referred to after it: neither by residuals nor by anything that waits for a backward.

    The flat functions that the methods return run on any thread, several at the same time.
    """

    leaves: tuple[Leaf, ...] = ()
    """The residual arrays of one example. Each of them also gets all batch axes of the forward."""

    uses_tickets: bool = False
    """Whether the first residual is a number that `forward` also passes to `tickets.leave`.

    On a GPU its derivatives find the number there, and do not wait for the device.
    """

    is_traced: bool = False
    """Whether forward and pullbacks were traced, so that they can be compiled."""

    def __init__(self, function: DifferentiatedFunction) -> None:
        self.function = function

    @abc.abstractmethod
    def forward(self, value: FlatFunction, to_record: FlatFunction, axes: BatchAxes) -> FlatFunction:
        """A flat function from the operands to the results and the residuals, over the batch axes of the operands.

        `value` returns the results without residuals. `to_record` does too, and is for a run that autograd records:
        all examples have an operand of their own there for each of `function.ins`. It may raise `HiddenGradientError`.
        """

    @abc.abstractmethod
    def pullback(
        self, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes, recompute: FlatFunction
    ) -> FlatFunction:
        """A flat function from operands, residuals and cotangents of the results `outs` to cotangents of `ins`.

        `axes` are the batch axes of operands and residuals; cotangents have all of them, also those returned.
        `recompute` takes operands and cotangents, and runs the forward again.
        """

    def pushforward(self, recompute: FlatFunction) -> FlatFunction:
        """A flat function from operands, residuals and tangents to tangents; `recompute` takes no residuals.

        `jax.jvp` runs it right after the forward, and then no backward needs the residuals.
        """
        first, end = self.places
        return lambda *a: recompute(*a[:first], *a[end:])

    def forward_graph(self, device: torch.device) -> GraphModule | None:
        """A graph of the forward of one example, for the compiler; None where it has to be traced as a function."""
        return None

    def pullback_graph(self, ins: tuple[int, ...], outs: tuple[int, ...], device: torch.device) -> GraphModule | None:
        """A graph of a pullback of one example, for the compiler; None where it has to be traced as a function."""
        return None

    @property
    def places(self) -> tuple[int, int]:
        """Where the residuals begin among the arguments of a linear map, and where its tangents or cotangents do."""
        first = len(self.function.operands)
        return first, first + len(self.leaves)
