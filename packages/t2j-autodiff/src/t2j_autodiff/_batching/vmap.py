"""Flat functions over batch axes: how each axis runs."""

from __future__ import annotations

from collections.abc import Sequence

from t2j_core.extend import FlatFunction, Leaf

from .._base.decisions import BatchKind, Decisions
from .at_once import AtOnce
from .batch_axes import NO_AXES, BatchAxes, Dims
from .in_turn import InTurn
from .leading_axes import LeadingAxes, zeros_of
from .until_it_fails import AtOnceUntilItFails


def batched(
    f: FlatFunction, results: Sequence[Leaf], size: int, dims: Dims, decisions: Decisions, kind: BatchKind
) -> FlatFunction:
    """`f` for `size` examples; every result has the examples along axis 0.

    For the kind "record", a function that asks for what `torch.func.vmap` hides raises `HiddenGradientError`: its
    caller keeps no graph then.
    """
    is_derivative = kind not in ("value", "record")
    options = decisions.options
    method = options.vmap_method
    key_is_batched = decisions.has_key and dims[0] is not None
    if options.has_leading_axes:
        if isinstance(f, LeadingAxes):
            return f.over(size, dims)
        if not is_derivative:
            return LeadingAxes(f, NO_AXES.within(size, dims), results, decisions, expand=method == "broadcast_all")
        method = "auto"  # the function would sum a derivative over the examples
    if size == 0:
        return lambda *x: zeros_of(results, (0,), x[0].device)
    if method == "sequential":
        return InTurn(f, size, dims, decisions, kind, ' (`vmap_method="sequential"`)')
    if method == "auto" and key_is_batched and options.vmap_randomness is None:
        return InTurn(f, size, dims, decisions, kind, ", so that each draws with its key what it would draw alone")
    at_once = AtOnce(f, results, size, dims, decisions, kind, shows_gradients=is_derivative)
    if method == "vmap":
        return at_once
    return AtOnceUntilItFails(at_once, InTurn(f, size, dims, decisions, kind))


def over_axes(
    f: FlatFunction, results: Sequence[Leaf], axes: BatchAxes, decisions: Decisions, kind: BatchKind
) -> FlatFunction:
    """`f` over all batch axes, as `batched` over each. `results` are those of one example."""
    if not axes:
        return f
    inner = over_axes(f, results, axes.inner, decisions, kind)
    of_inner = [axes.inner.of_result(leaf) for leaf in results]
    return batched(inner, of_inner, *axes[0], decisions, kind)
