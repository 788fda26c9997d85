"""Partition specs: trees of them, the mesh axes they name, the shapes of shards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from t2j_core import ShardingError
from t2j_core.extend import describe

Shape = tuple[int, ...]
Sizes = Mapping[str, int]  # devices along each axis of a mesh
Axes = str | tuple[str, ...] | None  # of one dimension
SpecTree = object  # a tree of specs: partition specs, shardings or None for replicated arrays


def is_spec(item: object) -> bool:
    """Whether an item of a tree of specs is one spec; None is that of a replicated array."""
    return item is None or isinstance(item, (PartitionSpec, NamedSharding))


def check_specs(option: str, specs: SpecTree) -> None:
    """Raise unless `specs` is a tree of partition specs."""
    for item in jax.tree.leaves(specs, is_leaf=is_spec):
        if not is_spec(item) or _says_more(_spec(item)):
            raise ShardingError(
                describe(
                    f"`{option}` holds something other than partition specs.",
                    expected="a `jax.sharding.PartitionSpec`, or a tree of them; None for a replicated array",
                    got=repr(item),
                    remedy='Name one mesh axis, a tuple of them or None for each dimension: `P("data", None)`.',
                )
            )


def _says_more(spec: PartitionSpec) -> bool:
    """Whether a spec says more than how to split an array."""
    return bool(spec.unreduced or spec.reduced) or any(part is PartitionSpec.UNCONSTRAINED for part in spec)


def spread(option: str, specs: SpecTree, full: object) -> list[PartitionSpec]:
    """One spec for each leaf of the tree `full`, of which `specs` is a prefix."""
    try:
        whole = jax.tree.map(lambda spec, part: jax.tree.map(lambda _: _spec(spec), part), specs, full, is_leaf=is_spec)
    except ValueError:
        raise ShardingError(
            describe(
                f"`{option}` does not match its tree.",
                expected=f"one spec, or a prefix of {jax.tree.structure(full)}",
                got=f"{specs}",
                remedy="Give one spec for all arrays, or one for each part of the tree.",
            )
        ) from None
    return jax.tree.leaves(whole, is_leaf=lambda x: isinstance(x, PartitionSpec))


def _spec(item: PartitionSpec | NamedSharding | None) -> PartitionSpec:
    if isinstance(item, NamedSharding):
        return item.spec
    return PartitionSpec() if item is None else item


def spec_axes(spec: Iterable[Any]) -> frozenset[str]:
    """The mesh axes that a spec names."""
    return frozenset(axis for part in spec for axis in _axes_of(part))


def tree_axes(specs: SpecTree) -> frozenset[str]:
    """The mesh axes that a tree of specs names."""
    return frozenset().union(*(spec_axes(_spec(item)) for item in jax.tree.leaves(specs, is_leaf=is_spec)))


def _axes_of(part: Axes) -> tuple[str, ...]:
    return () if part is None else part if isinstance(part, tuple) else (part,)


def without_axes(spec: Iterable[Any], axes: frozenset[str]) -> PartitionSpec:
    """A spec without some axes."""
    kept = [tuple(axis for axis in _axes_of(part) if axis not in axes) for part in spec]
    return PartitionSpec(*(part if len(part) > 1 else part[0] if part else None for part in kept))


def is_same(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Whether two specs of one array are equivalent: trailing Nones do not count."""
    a, b = ([_axes_of(part) for part in spec] for spec in (one, other))
    longest = max(len(a), len(b))
    return a + [()] * (longest - len(a)) == b + [()] * (longest - len(b))


def check_spec(path: str, shape: Shape, spec: PartitionSpec, *, of: str = "") -> None:
    """Raise if a spec does not fit an array of this number of dimensions, whatever their sizes.

    `of` follows the shape in the error, where it is not that of the whole array.
    """
    axes = [axis for part in spec for axis in _axes_of(part)]
    got = f"shape {list(shape)}{of}"
    if len(spec) > len(shape):
        raise _misfit(path, spec, f"at most {len(shape)} entries, one for each dimension", got, "Shorten the spec.")
    if len(set(axes)) < len(axes):
        raise _misfit(path, spec, "each mesh axis once", got, "Shard each dimension over axes of its own.")


def shard_shape(path: str, shape: Shape, spec: PartitionSpec, sizes: Sizes) -> Shape:
    """The shape of one shard of an array. Raises if the spec does not fit the array."""
    check_spec(path, shape, spec)
    shards = [math.prod(sizes[axis] for axis in _axes_of(part)) for part in spec]
    shards += [1] * (len(shape) - len(shards))
    for dimension, (size, count) in enumerate(zip(shape, shards, strict=True)):
        if size % count:
            raise _misfit(
                path,
                spec,
                f"a multiple of {count} in dimension {dimension}, which is split over {count} devices",
                f"shape {list(shape)}",
                "Pad the array, or choose another dimension or mesh.",
            )
    return tuple(size // count for size, count in zip(shape, shards, strict=True))


def _misfit(path: str, spec: PartitionSpec, expected: str, got: str, remedy: str) -> ShardingError:
    return ShardingError(describe(f"The spec {spec} does not fit {path}.", expected=expected, got=got, remedy=remedy))
