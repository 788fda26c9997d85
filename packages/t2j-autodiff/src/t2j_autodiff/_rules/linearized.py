"""`Linearized`: the flat functions that the derivatives of a `TorchFn` are made of."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from t2j_core.extend import FlatFunction, Leaf, TorchFn

from .._base.memo import Memo
from .._batching.batch_axes import NO_AXES, BatchAxes
from .._batching.from_examples import from_examples, unless_it_fails
from .._batching.rehearsal import rehearsed
from .._batching.vmap import over_axes
from .._derivatives.decompositions import with_decompositions
from .._derivatives.flat_functions import Direction
from .._derivatives.forward_mode import jvp, rehearse, results_and_jvp
from .._derivatives.jvp_decision import JvpDecision
from .._derivatives.pushforward import Pushforward
from .._derivatives.reverse_mode import Pullback, vjp
from .._derivatives.vjp_of_jvp import VjpOfJvp
from .._residuals.choice import residuals_of
from .._residuals.protocol import DifferentiatedFunction
from .._residuals.random_check import warn_if_random
from .._residuals.recorded_values import RecordedIfItAsks, recorded
from .conventions import has_tangents
from .function_rules import rules_of


def linearized(fn: TorchFn, ins: tuple[int, ...], *, keeps: bool = True) -> Linearized:
    """`fn` with respect to the operands `ins`. Derivatives of derivatives keep no residuals."""
    rules = rules_of(fn)
    keeps = keeps and not rules.is_derivative
    found: Linearized = rules.memo.get(("linearized", ins, keeps), lambda: Linearized(fn, ins, keeps=keeps))
    return found


class Linearized:
    """A function with respect to the operands `ins`: its forward with residuals, and its linear maps.

    A linear map takes the operands of the function, the residuals, and tangents of some operands (a pushforward, "jvp")
    or cotangents of some results (a pullback, "vjp"). Transposing one gives the other.
    """

    def __init__(self, source: TorchFn, ins: tuple[int, ...], *, keeps: bool) -> None:
        rules = rules_of(source)
        self.source = source
        self.rules = rules
        self.flat_function = rules.flat_function
        self.ins = ins
        self.decisions = rules.decisions
        self.memo = Memo()
        self.operands = source.signature.operands
        self.results = source.signature.outputs.leaves
        self.outs = tuple(i for i, leaf in enumerate(self.results) if has_tangents(leaf))
        self.linear = () if rules.linear_from is None else tuple(range(rules.linear_from, len(self.operands)))
        """The operands that the function is linear in, if it is itself a derivative."""
        label = str(source.signature)
        self.jvp_decision = JvpDecision(functools.partial(self.decisions.forward_modes.__setitem__, label))
        function = DifferentiatedFunction(
            self.flat_function, self.operands, self.results, ins, self.outs, self.decisions, label, source.lending
        )
        self.residuals = residuals_of(function, keeps=keeps, is_quick=source.signature.outputs.is_quick)

    @property
    def compiles(self) -> bool:
        """Whether its forward and its pullbacks are compiled: where they could be traced."""
        return self.decisions.compiles and self.residuals.is_traced

    @property
    def residual_leaves(self) -> tuple[Leaf, ...]:
        """What the forward returns beside the outputs."""
        return self.residuals.leaves

    @property
    def constants(self) -> tuple[Leaf, ...]:
        """The operands of a linear map that it is not linear in."""
        return (*self.operands, *self.residual_leaves)

    # --- the function and its forward ------------------------------------------------------------------------------

    def batched_function(self, axes: BatchAxes, *, is_record: bool = False) -> FlatFunction:
        """The function over batch axes. In one that autograd is to record, the operands `ins` have every axis."""
        axes = axes.of_first(len(self.operands))
        if is_record:
            return over_axes(self.flat_function, self.results, axes.filled(self.ins), self.decisions, "record")
        return over_axes(self.flat_function, self.results, axes, self.decisions, "value")

    def primal_function(self, axes: BatchAxes) -> FlatFunction:
        """The flat function that returns the results alone. If it asks, it sees that it is differentiated."""
        primal = self.batched_function(axes)
        if self.compiles:
            return primal
        if self.decisions.options.has_leading_axes:
            return RecordedIfItAsks(primal, recorded(primal, self.ins, self.decisions), self.decisions)
        f = recorded(self.flat_function, self.ins, self.decisions)
        f = over_axes(f, self.results, axes, self.decisions, "value beside derivatives")
        return RecordedIfItAsks(primal, f, self.decisions)

    def forward_function(self, axes: BatchAxes) -> FlatFunction:
        """The flat function that returns results and residuals."""
        return self.residuals.forward(self.primal_function(axes), self.batched_function(axes, is_record=True), axes)

    # --- linear maps -----------------------------------------------------------------------------------------------

    def map_leaves(
        self, direction: Direction, ins: tuple[int, ...], outs: tuple[int, ...]
    ) -> tuple[list[Leaf], list[Leaf]]:
        """What a linear map takes beside the constants, and what it returns."""
        of_ins, of_outs = [self.operands[i] for i in ins], [self.results[i] for i in outs]
        return (of_ins, of_outs) if direction == "jvp" else (of_outs, of_ins)

    def pullback(self) -> Pullback:
        """How the function is differentiated in reverse mode."""
        return self.rules.vjp_of_jvp or functools.partial(vjp, self.flat_function, linear=self.linear)

    def recomputing_map(
        self, direction: Direction, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes
    ) -> FlatFunction:
        """A linear map without residuals: it runs the forward again, and torch can differentiate it."""
        n, pullback_of_function = len(self.operands), self.pullback()

        def at(a: Sequence[torch.Tensor]) -> Pushforward:
            f, pullback_of_f = self.flat_function, self.rules.vjp_of_jvp
            return Pushforward(f, a[:n], ins, a[n:], outs, self.results, self.linear, pullback_of_f)

        def pushforward(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return jvp(at(a), self.jvp_decision)

        def pullback(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(pullback_of_function(a[:n], ins, dict(zip(outs, a[n:], strict=True))))

        if self.linear:  # a second derivative: its backward too may run forwards again (`torch.utils.checkpoint`)
            pullback = with_decompositions(pullback, self.decisions)
        taken, returned = self.map_leaves(direction, ins, outs)
        run: FlatFunction = warn_if_random(pushforward if direction == "jvp" else pullback, self.decisions)
        if (example := self._of_example(direction, ins, outs)) is not None:
            run = unless_it_fails(run, example, self.decisions)
        of_map = axes.of_first(n).with_full(len(taken))
        run = over_axes(run, returned, of_map, self.decisions, direction)
        if direction == "jvp":
            run = rehearsed(run, lambda *a: rehearse(at(a), self.jvp_decision), n, axes, self.jvp_decision)
        return run

    def results_and_pushforward(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> FlatFunction:
        """A flat function from operands and tangents of `ins` to all results and the tangents of `outs`."""
        n, everything = len(self.operands), range(len(self.results))
        value, tangents = self.primal_function(NO_AXES), self.recomputing_map("jvp", ins, outs, NO_AXES)

        def run(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if self.decisions.asks_for_gradients is False:
                pushforward = Pushforward(self.flat_function, a[:n], ins, a[n:], everything, self.results)
                if (found := results_and_jvp(pushforward, self.jvp_decision)) is not None:
                    y, dy = found
                    return (*y, *(dy[i] for i in outs))
            return (*value(*a[:n]), *tangents(*a))

        return run

    def _of_example(self, direction: Direction, ins: tuple[int, ...], outs: tuple[int, ...]) -> FlatFunction | None:
        """A linear map of a batch from those of its examples."""
        if self.rules.batch_of is None or self.decisions.options.vmap_method != "auto":
            return None
        fn, size, dims = self.rules.batch_of
        of_one = self._like(fn, outs).recomputing_map(direction, ins, outs, NO_AXES)
        return from_examples(of_one, direction, ins, outs, size, dims, self.decisions)

    def _like(self, fn: TorchFn, outs: tuple[int, ...]) -> Linearized:
        """The same of another function, which this one is a batch of."""
        return linearized(fn, self.ins, keeps=False)

    def vjp_of_jvp(
        self, pushforward: FlatFunction, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes
    ) -> VjpOfJvp:
        """The pullback of `pushforward`."""
        pullback = with_decompositions(self.recomputing_map("vjp", ins, outs, axes), self.decisions)
        results = [axes.of_result(self.results[i]) for i in outs]
        return VjpOfJvp(pushforward, pullback, len(self.operands), results)

    def map_function(
        self, direction: Direction, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes
    ) -> FlatFunction:
        """A linear map with residuals: it uses them if they are there, else it runs the forward again."""
        recompute = self.recomputing_map(direction, ins, outs, axes)
        if direction == "jvp":
            return self.residuals.pushforward(recompute)
        return self.residuals.pullback(ins, outs, axes, recompute)
