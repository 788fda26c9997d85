"""Flat torch functions over a batch: `jax.vmap` in one call of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import torch
from jax.sharding import NamedSharding, PartitionSpec
from t2j_core import PerformanceWarning
from t2j_core.extend import Leaf, batched_mesh_axes, explicit_spec, manual_axes, reshard, warn

from . import _compat
from ._differentiate import Flat, first_line
from ._shared import Shared

Dims = tuple[int | None, ...]  # per operand: 0, or None where it is the same for all examples
Levels = tuple[tuple[int, Dims], ...]
"""Batch axes, innermost first: how many examples, and which operands have the axis."""


def with_levels(leaf: Leaf, index: int, levels: Levels) -> Leaf:
    """The leaf of an operand with its batch axes."""
    sizes = tuple(size for size, dims in reversed(levels) if dims[index] is not None)
    return replace(leaf, shape=(*sizes, *leaf.shape)) if sizes else leaf


def with_all_levels(leaf: Leaf, levels: Levels) -> Leaf:
    """The leaf of a result, which has every batch axis."""
    sizes = tuple(size for size, _ in reversed(levels))
    return replace(leaf, shape=(*sizes, *leaf.shape)) if sizes else leaf


def with_batch_axes(t: torch.Tensor, index: int, levels: Levels, *, expand: bool = True) -> torch.Tensor:
    """An operand with all batch axes in front, outermost first; those it did not have are of size 1 unless `expand`."""
    for position, (size, dims) in enumerate(reversed(levels)):
        if dims[index] is None:
            t = t.unsqueeze(position)
            t = t.expand(*t.shape[:position], size, *t.shape[position + 1 :]) if expand else t
    return t


class LeadingAxes:
    """A function that takes its batch axes itself, in front of its own."""

    def __init__(self, f: Flat, levels: Levels, results: Sequence[Leaf], *, expand: bool) -> None:
        self.f = f
        self.levels = levels
        self.results = results
        self.expand = expand

    def __call__(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes = tuple(size for size, _ in reversed(self.levels))
        if 0 in sizes:
            return _zeros(self.results, sizes, x[0].device)
        n = len(sizes)
        rows = (with_batch_axes(t, i, self.levels, expand=self.expand) for i, t in enumerate(x))
        fits = lambda y: y.dim() >= n and all(have in (1, size) for have, size in zip(y.shape, sizes, strict=False))
        return tuple(y.expand(*sizes, *y.shape[n:]) if fits(y) else y for y in self.f(*rows))

    def over(self, size: int, dims: Dims) -> LeadingAxes:
        """The function with one more batch axis, outside the others."""
        return LeadingAxes(self.f, (*self.levels, (size, dims)), self.results, expand=self.expand)


def batched(f: Flat, results: Sequence[Leaf], size: int, dims: Dims, shared: Shared, *, is_derivative: bool) -> Flat:
    """`f` for `size` examples at once; every output has the examples along axis 0."""

    def in_turn(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # An example of its own memory, not a view: some operations read the memory from its beginning.
        def example(i: int) -> list[torch.Tensor]:
            return [t if d is None else t[i].clone() for t, d in zip(x, dims, strict=True)]

        answers = [f(*example(i)) for i in range(size)]
        return tuple(torch.stack(column) for column in zip(*answers, strict=True))

    def with_vmap(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.func.vmap(f, dims, randomness=randomness, chunk_size=options.vmap_chunk_size)(*x)

    def with_vmap_or_in_turn(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if shared.vmap_failure is not None:
            return in_turn(*x)
        try:
            return with_vmap(*x)
        except Exception as error:
            if _compat.in_transform():  # the outermost batch decides
                raise
            if options.vmap_randomness == "error" and "randomness" in str(error):  # which was asked for
                raise
            answers = in_turn(*x)
            shared.vmap_failure = first_line(error)
        warn(_in_turn(shared.name, size, shared.vmap_failure), PerformanceWarning)
        return answers

    def empty(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _zeros(results, (0,), x[0].device)

    options = shared.options
    method = options.vmap_method
    key_is_batched = shared.has_key and dims[0] is not None
    randomness = options.vmap_randomness or ("same" if shared.has_key else "error")
    if method in ("expand_dims", "broadcast_all"):
        if isinstance(f, LeadingAxes):
            return f.over(size, dims)
        if not is_derivative:
            return LeadingAxes(f, ((size, dims),), results, expand=method == "broadcast_all")
        method = "auto"  # a derivative would be summed over the examples
    if size == 0:
        return empty
    if method == "auto":
        # Each example of a batch of keys draws the numbers that it draws alone, so they take turns.
        return in_turn if key_is_batched and options.vmap_randomness is None else with_vmap_or_in_turn
    return with_vmap if method == "vmap" else in_turn


def over_devices(call: Callable[[int, Sequence[Any]], Any], size: int, operands: Sequence[Any], dims: Dims) -> Any:
    """`call(size, operands)`; where the batch is sharded over Explicit mesh axes, each device runs its own examples."""
    specs = [explicit_spec(jax.typeof(x)) for x in operands]
    split = next((spec[0] for spec, d in zip(specs, dims, strict=True) if spec and d == 0), None)
    inside = [spec if d is None else spec[1:] for spec, d in zip(specs, dims, strict=True) if spec]
    if split is None or any(part is not None for spec in inside for part in spec):  # of an example: not for one device
        return call(size, operands)
    mesh = next(jax.typeof(x).sharding.mesh for x, spec in zip(operands, specs, strict=True) if spec)
    axes = split if isinstance(split, tuple) else (split,)
    count = math.prod(mesh.shape[axis] for axis in axes)
    own = [PartitionSpec() if d is None else PartitionSpec(split) for d in dims]
    operands = [
        x if spec or d is None else reshard(x, NamedSharding(mesh, wanted))
        for x, spec, d, wanted in zip(operands, specs, dims, own, strict=True)
    ]
    with batched_mesh_axes():
        return jax.shard_map(
            lambda *shards: tuple(call(size // count, shards)),
            mesh=mesh if jax.sharding.get_abstract_mesh().empty else None,
            in_specs=tuple(own),
            out_specs=PartitionSpec(split),
            axis_names=manual_axes(mesh, axes),
        )(*operands)


def _zeros(results: Sequence[Leaf], sizes: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros((*sizes, *leaf.shape), dtype=leaf.torch_dtype, device=device) for leaf in results)


def _in_turn(name: str, size: int, reason: str) -> str:
    return (
        f"`torch.func.vmap` cannot batch {name} ({reason}), so the {size} examples run one after another. "
        'Pass `vmap_method="sequential"` to choose that.'
    )
