"""The primitive `torch_linear`: a pushforward or a pullback, linear in its last operands, which has a transpose.

JAX's own partial evaluation makes reverse mode of it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from t2j_core.extend import Rules, TorchFn, call_primitive, torch_call

from .. import _compat
from .._batching.batch_axes import NO_AXES, BatchAxes
from .._batching.over_devices import over_devices
from .._derivatives.decompositions import with_decompositions
from .._derivatives.flat_functions import Direction
from .conventions import batch_in_front, check_depth, moved_operands
from .function_rules import FunctionRules
from .linearized import Linearized, linearized

torch_linear_p = call_primitive("torch_linear", is_linear=True)


def torch_linear(*operands: jax.Array, fn: TorchFn) -> list[Any]:
    """Bind the primitive, whose `fn` comes from `linear_map`."""
    return torch_call(*operands, fn=fn, primitive=torch_linear_p)


def tangents_of(
    linear: Linearized,
    depth: float,
    primals: Sequence[Any],
    y: Sequence[Any],
    residuals: Sequence[Any],
    tangents: Sequence[Any],
) -> list[Any]:
    """The tangents of the results `y`, from those of the operands `linear.ins`."""
    ins, outs = linear.ins, linear.outs
    found = [_compat.zero_tangent(yi) for yi in y]
    if outs:
        dx = [_compat.ad.instantiate_zeros(tangents[i]) for i in ins]
        fn = linear_map(linear, "jvp", ins, outs, NO_AXES, depth)
        for i, dy in zip(outs, torch_linear(*primals, *residuals, *dx, fn=fn), strict=True):
            found[i] = dy
    return found


def linear_map(
    linear: Linearized, direction: Direction, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes, depth: float
) -> TorchFn:
    """A pushforward or pullback of a linearized function, for `torch_linear`. It has no side effect."""

    def make() -> TorchFn:
        source = linear.source
        taken, returned = linear.map_leaves(direction, ins, outs)
        constants = [axes.of_operand(leaf, i) for i, leaf in enumerate(linear.constants)]
        fn = source.derived(
            direction,
            linear.map_function(direction, ins, outs, axes),
            [*constants, *(axes.of_result(leaf) for leaf in taken)],
            [axes.of_result(leaf) for leaf in returned],
            rules=LinearRules(linear, direction, ins, outs, axes, depth),
            options=replace(source.options, has_side_effect=False, compile=linear.compiles and direction == "vjp"),
        )
        if linear.residuals.uses_tickets:
            fn.ticket = len(linear.operands)
        if not axes and direction == "vjp":
            fn.graph = functools.partial(linear.residuals.pullback_graph, ins, outs)
        if axes:
            dims = (*axes[0].dims, *(0 for _ in taken))
            fn.example = lambda: (linear_map(linear, direction, ins, outs, axes.inner, depth), dims)
        return fn

    found: TorchFn = linear.memo.get((direction, ins, outs, axes, depth), make)
    return found


class LinearRules(Rules[TorchFn]):
    """The rules of a linear map."""

    def __init__(
        self,
        linear: Linearized,
        direction: Direction,
        ins: tuple[int, ...],
        outs: tuple[int, ...],
        axes: BatchAxes,
        depth: float,
    ) -> None:
        self.linear = linear
        self.direction, self.ins, self.outs, self.axes, self.depth = direction, ins, outs, axes, depth
        self.n_operands, self.n_constants = len(linear.operands), len(linear.constants)
        f = with_decompositions(linear.recomputing_map(direction, ins, outs, axes), linear.decisions)
        vjp_of_jvp = linear.vjp_of_jvp(f, ins, outs, axes) if direction == "jvp" else None
        self._recomputing = FunctionRules(
            f, depth, linear.decisions, linear_from=self.n_operands, vjp_of_jvp=vjp_of_jvp
        )

    def jvp(
        self, primals: Sequence[Any], tangents: Sequence[Any], *, fn: TorchFn
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """Forward mode: linear again, unless the constants move.

        Residuals are cached values: derivatives go through the operands that they were computed from.
        """
        m = self.n_constants
        y = torch_linear(*primals, fn=fn)
        if moved_operands(fn, tangents[: self.n_operands]):
            check_depth(self.depth, self.linear.decisions)
            of_map, tangents = self._without_residuals(fn), self._drop_residuals(tangents)
            linear = linearized(of_map, moved_operands(of_map, tangents))
            return y, tangents_of(linear, self.depth - 1, self._drop_residuals(primals), y, (), tangents)
        if all(map(_compat.is_zero, tangents[m:])):
            return y, [_compat.zero_tangent(yi) for yi in y]
        moved = [_compat.ad.instantiate_zeros(t) for t in tangents[m:]]
        return y, torch_linear(*primals[:m], *moved, fn=fn)

    def transpose(self, cotangents: Sequence[Any], operands: Sequence[Any], *, fn: TorchFn) -> list[Any]:
        """Transposition. Cotangents that JAX does not ask for are not computed."""
        m = self.n_constants
        wanted = [_compat.ad.is_undefined_primal(x) for x in operands[m:]]
        given = [not _compat.is_zero(ct) for ct in cotangents]
        found: list[Any] = [None] * len(operands)
        for k, x in enumerate(operands[m:]):
            if wanted[k]:
                found[m + k] = _compat.zero_cotangent(x)
        if not any(given) or not any(wanted):
            return found
        if self.direction == "jvp":
            direction: Direction = "vjp"
            ins, outs = _choose(self.ins, wanted), _choose(self.outs, given)
        else:
            direction, ins, outs = "jvp", _choose(self.ins, given), _choose(self.outs, wanted)
        transposed = linear_map(self.linear, direction, ins, outs, self.axes, self.depth)
        results = torch_linear(*operands[:m], *_choose(cotangents, given), fn=transposed)
        for position, result in zip(_choose(range(len(operands) - m), wanted), results, strict=True):
            found[m + position] = result
        return found

    def batch(
        self, operands: Sequence[Any], dims: Sequence[int | None], *, fn: TorchFn
    ) -> tuple[Sequence[Any], Sequence[int | None]]:
        """Batching: all operands that the map is linear in get the axis."""
        size, operands, dims = batch_in_front(operands, dims)
        m = self.n_constants

        def call(size: int, operands: Sequence[Any]) -> list[Any]:
            moved = [
                x if d == 0 else jnp.broadcast_to(x, (size, *jnp.shape(x)))
                for x, d in zip(operands[m:], dims[m:], strict=True)
            ]
            axes = self.axes.within(size, dims[:m])
            over_batch = linear_map(self.linear, self.direction, self.ins, self.outs, axes, self.depth)
            return torch_linear(*operands[:m], *moved, fn=over_batch)

        results = over_devices(call, size, operands, dims)
        return results, [0] * len(results)

    def with_results(self, *, fn: TorchFn) -> TorchFn | None:
        """A pushforward together with its forward: torch's forward mode computes the results anyway."""
        linear = self.linear
        if self.direction != "jvp" or self.axes or linear.source.options.has_side_effect:
            return None

        def make() -> TorchFn:
            operands, results = self._drop_residuals(fn.signature.operands), fn.signature.outputs.leaves
            f = linear.results_and_pushforward(self.ins, self.outs)
            options = replace(linear.source.options, compile=False)
            leaves = [*linear.results, *results]
            return linear.source.derived("jvp", f, operands, leaves, rules=Rules(), options=options)

        found: TorchFn = linear.memo.get(("with results", self.ins, self.outs), make)
        return found

    def _without_residuals(self, fn: TorchFn) -> TorchFn:
        """The map without residuals, as any function. It is differentiated, but never called itself."""

        def make() -> TorchFn:
            rules, source = self._recomputing, self.linear.source
            operands, results = self._drop_residuals(fn.signature.operands), fn.signature.outputs.leaves
            options = replace(source.options, has_side_effect=False, compile=False)
            return source.derived(self.direction, rules.flat_function, operands, results, rules=rules, options=options)

        found: TorchFn = self._recomputing.memo.get("function", make)
        return found

    def _drop_residuals(self, values: Sequence[Any]) -> list[Any]:
        return [*values[: self.n_operands], *values[self.n_constants :]]


def _choose(values: Sequence[Any], mask: Sequence[bool]) -> tuple[Any, ...]:
    return tuple(value for value, chosen in zip(values, mask, strict=True) if chosen)
