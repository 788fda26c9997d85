"""From a `TorchFn` to the functions that its derivatives are made of. Each is made once and remembered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax.numpy as jnp
import torch
from t2j_core.extend import Leaf, TorchFn, flat_signature, remember

from .._base.decisions import Shared
from .._batching.batch_axes import NO_AXES, BatchAxes
from .._batching.from_examples import from_examples, unless_it_fails
from .._batching.rehearsal import rehearsed
from .._batching.vmap import over_axes
from .._derivatives.adjoint import Adjoint
from .._derivatives.forward_mode import ForwardMode, jvp, rehearse
from .._derivatives.plain_operations import in_plain_operations
from .._derivatives.pushforward import Pull, Pushforward
from .._derivatives.reverse_mode import Flat, vjp
from .._residuals.choice import residuals_of
from .._residuals.protocol import FlatFunction
from .._residuals.random_check import warn_if_random
from .._residuals.shown import Shown, recorded


def is_inexact(leaf: Leaf) -> bool:
    """Whether a leaf can have a tangent."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


class Memo:
    """A table of values that are made when first asked for. Threads that race for one all get the same.

    Without a lock, because making a value may run code of the user's.
    """

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of `key`, made now if it is not known."""
        value = self._values.get(key)
        return remember(self._values, key, make()) if value is None else value


def derived(label: str, source: TorchFn, call: Flat, operands: Any, results: Any, outputs: str, rules: Any) -> TorchFn:
    """A flat function that comes from `source`."""
    signature = flat_signature(f"{label}({source.signature.name})", operands, results)
    lending = source.lending
    fn = TorchFn(
        call, signature, outputs=outputs, arguments=lending.arguments, told=lending.told, is_flat=True, rules=rules
    )
    fn.lending.speaks_of(lending)
    fn.origin = source.origin
    fn.reason_not_exportable = "only forward calls can be, not their derivatives or batches"
    return fn


class Linearized:
    """A function with respect to the inputs `ins`: its forward with residuals, and its linear maps.

    A linear map takes the operands of the function, the residuals, and tangents of some inputs (a pushforward, "jvp")
    or cotangents of some outputs (a pullback, "vjp"). Transposing one gives the other.
    """

    def __init__(self, source: TorchFn, flat: Flat, ins: tuple[int, ...], shared: Shared, *, keeps: bool) -> None:
        self.source = source
        self.flat = flat
        self.ins = ins
        self.shared = shared
        self.memo = Memo()
        self.operands = source.signature.operands
        self.results = source.signature.outputs.leaves
        self.outs = tuple(i for i, leaf in enumerate(self.results) if is_inexact(leaf))
        self.linear = self._linear_operands()
        label = str(source.signature)
        self.forward_mode = ForwardMode(functools.partial(shared.forward_modes.__setitem__, label))
        function = FlatFunction(flat, self.operands, self.results, ins, self.outs, shared, label)
        self.residuals = residuals_of(function, keeps=keeps, is_quick=source.signature.outputs.is_quick)

    def _linear_operands(self) -> tuple[int, ...]:
        """The operands that the function is linear in, if it is itself a derivative."""
        first = self.source.rules.linear_from
        return () if first is None else tuple(range(first, len(self.operands)))

    @property
    def residual_leaves(self) -> tuple[Leaf, ...]:
        """What the forward returns beside the outputs."""
        return self.residuals.leaves

    @property
    def constants(self) -> tuple[Leaf, ...]:
        """The operands of a linear map that it is not linear in."""
        return (*self.operands, *self.residual_leaves)

    def batched_flat(self, axes: BatchAxes, *, is_record: bool = False) -> Flat:
        """The function over batch axes. In one that autograd is to record, the inputs `ins` have every axis."""
        axes = axes.of_first(len(self.operands))
        axes, kind = (axes.filled(self.ins), "record") if is_record else (axes, "value")
        return over_axes(self.flat, self.results, axes, self.shared, is_derivative=False, kind=kind)

    def value_call(self, axes: BatchAxes) -> Flat:
        """The flat function that returns the outputs alone. It sees that it is differentiated."""
        plain = self.batched_flat(axes)
        if self.source.rules.is_derivative:  # which shows it anyway
            return plain
        if self.shared.options.has_leading_axes:
            return Shown(plain, recorded(plain, self.ins, self.shared), self.shared)
        flat = recorded(self.flat, self.ins, self.shared)
        flat = over_axes(flat, self.results, axes, self.shared, is_derivative=True, kind="shown")
        return Shown(plain, flat, self.shared)

    def forward_call(self, axes: BatchAxes) -> Flat:
        """The flat function that returns outputs and residuals."""
        return self.residuals.forward(self.value_call(axes), self.batched_flat(axes, is_record=True), axes)

    # --- linear maps -----------------------------------------------------------------------------------------------

    def map_leaves(self, direction: str, ins: tuple[int, ...], outs: tuple[int, ...]) -> tuple[list[Leaf], list[Leaf]]:
        """What a linear map takes beside the constants, and what it returns."""
        of_ins, of_outs = [self.operands[i] for i in ins], [self.results[i] for i in outs]
        return (of_ins, of_outs) if direction == "jvp" else (of_outs, of_ins)

    def map_flat(self, direction: str, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes) -> Flat:
        """A linear map without residuals: it runs the forward again, and torch can differentiate it."""
        f, n, shared = self.flat, len(self.operands), self.shared
        known, linear, adjoint, pullback = self.forward_mode, self.linear, self.source.rules.adjoint, self.pullback()

        def at(a: Sequence[torch.Tensor]) -> Pushforward:
            return Pushforward(f, a[:n], ins, a[n:], outs, self.results, linear, adjoint)

        def push(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return jvp(at(a), known)

        def pull(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            cotangents = dict(zip(outs, a[n:], strict=True))
            return tuple(pullback(a[:n], ins, cotangents))

        if linear:
            pull = in_plain_operations(pull, shared)  # its backward too, which may run forwards again (checkpoints)
        taken, answered = self.map_leaves(direction, ins, outs)
        flat: Flat = warn_if_random(push if direction == "jvp" else pull, shared)
        if (example := self._of_example(direction, ins, outs)) is not None:
            flat = unless_it_fails(flat, example, shared)
        of_map = axes.of_first(n).with_full(len(taken))
        flat = over_axes(flat, answered, of_map, shared, is_derivative=True, kind=direction)
        if direction == "jvp":
            flat = rehearsed(flat, lambda *a: rehearse(at(a), known), n, axes, known)
        return flat

    def pullback(self) -> Pull:
        """How the function is differentiated in reverse mode."""
        adjoint: Pull | None = self.source.rules.adjoint
        return adjoint or functools.partial(vjp, self.flat, linear=self.linear)

    def _of_example(self, direction: str, ins: tuple[int, ...], outs: tuple[int, ...]) -> Flat | None:
        """A linear map of a batch from those of its examples."""
        if self.source.rules.batch_of is None or self.shared.options.vmap_method != "auto":
            return None
        fn, size, dims = self.source.rules.batch_of
        of_one = self._like(fn, outs).map_flat(direction, ins, outs, NO_AXES)
        return from_examples(of_one, direction, ins, outs, size, dims, self.shared)

    def _like(self, fn: TorchFn, outs: tuple[int, ...]) -> Linearized:
        """The same of another function, which this one is a batch of."""
        linearized: Linearized = fn.rules.linearized(fn, self.ins, keeps=False)
        return linearized

    def adjoint(self, push: Flat, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes) -> Adjoint:
        """The pullback of the pushforward `push`."""
        pull = in_plain_operations(self.map_flat("vjp", ins, outs, axes), self.shared)
        return Adjoint(push, pull, len(self.operands), [axes.of_result(self.results[i]) for i in outs])

    def map_call(self, direction: str, ins: tuple[int, ...], outs: tuple[int, ...], axes: BatchAxes) -> Flat:
        """A linear map with residuals: it uses them if they are there, else it runs the forward again."""
        recompute = self.map_flat(direction, ins, outs, axes)
        if direction == "jvp":
            return self.residuals.pushforward(recompute)
        return self.residuals.pullback(ins, outs, axes, recompute)


def clones(f: Flat, indices: Sequence[int]) -> Flat:
    """`f`, which may write into the operands `indices`: it gets copies of them."""
    if not indices:
        return f

    def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return f(*(t.clone() if i in indices else t for i, t in enumerate(x)))

    return run
