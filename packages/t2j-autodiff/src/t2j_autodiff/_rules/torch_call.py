"""The rules of the primitive `torch_call`, a call of any torch function.

Its jvp is a forward, which returns residuals, and a `torch_linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from t2j_core.extend import Rules, TorchFn, torch_call

from .. import _compat
from .._batching.batch_axes import NO_AXES, BatchAxes, Dims
from .._batching.over_devices import over_devices
from .._batching.vmap import batched
from .conventions import batch_in_front, check_depth, is_given, moved_operands
from .function_rules import FunctionRules
from .linear_function import as_linear
from .linearized import Linearized, linearized
from .torch_linear import linear_map, tangents_of, torch_linear


class CallRules(FunctionRules):
    """The rules of a function."""

    def jvp(
        self, primals: Sequence[Any], tangents: Sequence[Any], *, fn: TorchFn
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """Forward mode: a forward, and the pushforward at its residuals."""
        ins = moved_operands(fn, tangents)
        if not ins:
            y = torch_call(*primals, fn=fn)
            return y, [_compat.zero_tangent(yi) for yi in y]
        check_depth(self.depth, self.decisions)
        linear = linearized(fn, ins)
        y = torch_call(*primals, fn=forward(linear, self.depth))
        n = len(linear.results)
        return y[:n], tangents_of(linear, self.depth - 1, primals, y[:n], y[n:], tangents)

    def batch(
        self, operands: Sequence[Any], dims: Sequence[int | None], *, fn: TorchFn
    ) -> tuple[Sequence[Any], Sequence[int | None]]:
        """Batching: a function over the batch."""
        size, operands, dims = batch_in_front(operands, dims)

        def call(size: int, operands: Sequence[Any]) -> list[Any]:
            return torch_call(*operands, fn=self._over_batch(fn, size, dims))

        results = over_devices(call, size, operands, dims)
        return results, [0] * len(results)

    def transpose(self, cotangents: Sequence[Any], operands: Sequence[Any], *, fn: TorchFn) -> list[Any]:
        """Transposition, of a function that is linear in the operands that JAX has no values of.

        The transpose is the pullback at zero. It is not a derivative, so `depth` does not count it.
        """
        found: list[Any] = [None] * len(operands)
        ins = tuple(i for i, x in enumerate(operands) if _compat.ad.is_undefined_primal(x))
        outs = tuple(i for i in range(len(fn.signature.outputs.leaves)) if is_given(cotangents[i]))
        for i in ins:
            found[i] = _compat.zero_cotangent(operands[i])
        if not outs or not ins:
            return found
        primals = [jnp.zeros(x.aval.shape, x.aval.dtype) if i in ins else x for i, x in enumerate(operands)]
        pullback = linear_map(as_linear(fn, ins, outs), "vjp", ins, outs, NO_AXES, self.depth)
        results = torch_linear(*primals, *(cotangents[o] for o in outs), fn=pullback)
        for i, result in zip(ins, results, strict=True):
            found[i] = result
        return found

    def _over_batch(self, fn: TorchFn, size: int, dims: Dims) -> TorchFn:
        """The function for a batch, with the examples along axis 0 of all results."""
        axes = NO_AXES.within(size, dims)

        def make() -> TorchFn:
            results = fn.signature.outputs.leaves
            f = batched(self.flat_function, results, size, dims, self.decisions, "value")
            over_batch = fn.derived(
                "vmap",
                f,
                [axes.of_operand(leaf, i) for i, leaf in enumerate(fn.signature.operands)],
                [axes.of_result(leaf) for leaf in results],
                rules=CallRules(
                    f,
                    self.depth,
                    self.decisions,
                    unbatched=self.unbatched or fn,
                    batch_of=(fn, size, dims),
                ),
            )
            over_batch.example = lambda: (fn, dims)
            return over_batch

        found: TorchFn = self.memo.get(("batch", size, dims), make)
        return found


def forward(linear: Linearized, depth: float, axes: BatchAxes = NO_AXES, *, keeps: bool = True) -> TorchFn:
    """The forward of a linearized function: its results, then the residuals if it `keeps` any."""
    source = linear.source
    keeps = keeps and bool(linear.residual_leaves)

    def make() -> TorchFn:
        kept = linear.residual_leaves if keeps else ()
        fn = source.derived(
            "forward",
            linear.forward_function(axes) if keeps else linear.primal_function(axes),
            [axes.of_operand(leaf, i) for i, leaf in enumerate(linear.operands)],
            [axes.of_result(leaf) for leaf in (*linear.results, *kept)],
            rules=ForwardRules(linear, axes, depth, keeps=keeps),
            options=replace(
                source.options, outputs="copy" if keeps else source.options.outputs, compile=linear.compiles
            ),
        )
        fn.hidden = len(kept)
        if keeps and not axes:
            fn.graph = linear.residuals.forward_graph
        if axes:
            fn.example = lambda: (forward(linear, depth, axes.inner, keeps=keeps), axes[0].dims)
        return fn

    found: TorchFn = linear.memo.get(("forward", depth, axes, keeps), make)
    return found


class ForwardRules(Rules[TorchFn]):
    """The rules of a forward. It returns residuals after its results if `keeps`, and then only if they are used."""

    def __init__(self, linear: Linearized, axes: BatchAxes, depth: float, *, keeps: bool) -> None:
        self.linear, self.axes, self.depth, self.keeps = linear, axes, depth, keeps
        f = linear.batched_function(axes)
        self._primal_rules = CallRules(f, depth, linear.decisions, unbatched=linear.source)

    def jvp(
        self, primals: Sequence[Any], tangents: Sequence[Any], *, fn: TorchFn
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """Forward mode: the residuals are cached values, so they have no tangents."""
        ins = moved_operands(fn, tangents)
        results = torch_call(*primals, fn=fn)
        if not ins:
            return results, [_compat.zero_tangent(r) for r in results]
        check_depth(self.depth, self.linear.decisions)
        linear = linearized(self._without_residuals(fn), ins, keeps=False)
        n = len(linear.results)
        moved = tangents_of(linear, self.depth - 1, primals, results[:n], (), tangents)
        return results, [*moved, *(_compat.zero_tangent(r) for r in results[n:])]

    def batch(
        self, operands: Sequence[Any], dims: Sequence[int | None], *, fn: TorchFn
    ) -> tuple[Sequence[Any], Sequence[int | None]]:
        """Batching: a forward of the batched function."""
        size, operands, dims = batch_in_front(operands, dims)

        def call(size: int, operands: Sequence[Any]) -> list[Any]:
            axes = self.axes.within(size, dims)
            return torch_call(*operands, fn=forward(self.linear, self.depth, axes, keeps=self.keeps))

        results = over_devices(call, size, operands, dims)
        return results, [0] * len(results)

    def transpose(self, cotangents: Sequence[Any], operands: Sequence[Any], *, fn: TorchFn) -> Sequence[Any]:
        """Transposition: of the function without residuals, which have no cotangents."""
        primal = self._without_residuals(fn)
        return primal.rules.transpose(cotangents, operands, fn=primal)

    def without_unused(self, used: Sequence[bool], *, fn: TorchFn) -> TorchFn | None:
        """The forward without residuals, where the program does not use them."""
        if not self.keeps or any(used[len(self.linear.results) :]):
            return None
        return forward(self.linear, self.depth, self.axes, keeps=False)

    def _without_residuals(self, fn: TorchFn) -> TorchFn:
        """The function that this is the forward of, over its batch axes."""
        source = self.linear.source
        if not self.axes:
            return source

        def make() -> TorchFn:
            rules = self._primal_rules
            results = fn.signature.outputs.leaves[: len(self.linear.results)]
            return source.derived("vmap", rules.flat_function, fn.signature.operands, results, rules=rules)

        found: TorchFn = self._primal_rules.memo.get("function", make)
        return found
