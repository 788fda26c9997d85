"""Batches that are sharded over devices: each device runs its own examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from t2j_core.extend import explicit_spec, manual_axes, reshard

from .. import _compat
from .batch_axes import Dims

Call = Callable[[int, Sequence[jax.Array]], Sequence[jax.Array]]
"""A call of a batch: takes the number of examples and the operands, returns the results."""


def over_devices(call: Call, size: int, operands: Sequence[jax.Array], dims: Dims) -> Sequence[jax.Array]:
    """`call(size, operands)`; where the batch is sharded over Explicit mesh axes, each device runs its own examples."""
    specs = [explicit_spec(jax.typeof(x)) for x in operands]
    split = next((spec[0] for spec, d in zip(specs, dims, strict=True) if spec and d == 0), None)
    of_examples = [spec if d is None else spec[1:] for spec, d in zip(specs, dims, strict=True) if spec]
    if split is None or any(part is not None for spec in of_examples for part in spec):
        return call(size, operands)  # no device has a whole example
    mesh = next(jax.typeof(x).sharding.mesh for x, spec in zip(operands, specs, strict=True) if spec)
    in_specs = tuple(PartitionSpec() if d is None else PartitionSpec(split) for d in dims)
    operands = [
        x if spec or d is None else reshard(x, NamedSharding(mesh, wanted))
        for x, spec, d, wanted in zip(operands, specs, dims, in_specs, strict=True)
    ]
    mesh_axes = split if isinstance(split, tuple) else (split,)
    size_of_shard = size // math.prod(mesh.shape[axis] for axis in mesh_axes)

    def of_shard(*shards: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(call(size_of_shard, shards))

    with _compat.batched_mesh_axes():
        results: Any = jax.shard_map(
            of_shard,
            mesh=mesh if jax.sharding.get_abstract_mesh().empty else None,
            in_specs=in_specs,
            out_specs=PartitionSpec(split),
            axis_names=manual_axes(mesh, mesh_axes),
        )(*operands)
    return results
