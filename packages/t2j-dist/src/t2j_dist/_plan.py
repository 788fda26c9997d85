"""`Plan`: how one call is split, and what follows for operands and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from t2j_core import ShardingError
from t2j_core.extend import CallTree, Leaf, Outputs, grouped, listed, reshard

from ._specs import Sizes, SpecTree, check_spec, is_same, shard_shape, spec_axes, spread, without_axes
from ._texts import differs_along, listed_axes, repeats_along
from ._wanted import AnyMesh, Wanted


class Plan(NamedTuple):
    """How one call is split."""

    name: str
    wanted: Wanted
    mesh: AnyMesh
    in_context: bool  # the mesh is that of the context
    sizes: Sizes
    axes: frozenset[str]  # to split over; empty for a plain call
    manual: frozenset[str]  # split already: the call is inside `jax.shard_map`
    in_specs: tuple[PartitionSpec, ...]  # one for each operand

    def explained(self, call_tree: CallTree, operands: Sequence[Leaf], outputs: Outputs) -> tuple[str, ...]:
        """How the call is split, in words; `operands` are the whole arrays."""
        mesh = f"the mesh {dict(self.sizes)}"
        if not self.axes:
            return (f"sharding: a plain call, inside `jax.shard_map` over {listed_axes(self.manual)} of {mesh}",)
        given = "" if self.wanted.in_specs is not None else " (as the arguments arrive)"
        ins = grouped(zip(call_tree.paths(), map(str, self.in_specs), strict=True))
        outs = grouped(zip(outputs.paths(), map(str, self.out_specs(outputs)), strict=True))
        return (
            f"sharding: once per shard of ({listed(operands)}), over {listed_axes(self.axes)} of {mesh}",
            f"in_specs{given}: {'; '.join(ins)}",
            f"out_specs: {'; '.join(outs)}",
        )

    @property
    def varying(self) -> frozenset[str]:
        """The axes along which the operands differ from device to device."""
        return frozenset().union(*map(spec_axes, self.in_specs))

    def _as_specified(self, x: jax.Array, spec: PartitionSpec) -> jax.Array:
        """An operand with its Explicit axes sharded as its spec says; `jax.shard_map` shards Auto axes itself."""
        others = frozenset(axis for axis, kind in kinds_of(self.mesh).items() if kind != AxisType.Explicit)
        have, want = (without_axes(it, others) for it in (jax.typeof(x).sharding.spec, spec))
        return x if is_same(have, want) else reshard(x, NamedSharding(self.mesh, want))

    def arranged(self, operands: Sequence[jax.Array]) -> Sequence[jax.Array]:
        """The operands, sharded as `jax.shard_map` requires."""
        return list(map(self._as_specified, operands, self.in_specs)) if self.in_specs else operands

    def operands_of_shard(self, call_tree: CallTree, operands: Sequence[Leaf]) -> tuple[Leaf, ...]:
        """The operands of one shard, from the whole ones. Raises for a spec that does not fit."""
        return self._of_shard(call_tree.paths(), operands, self.in_specs) if self.axes else tuple(operands)

    def outputs_of_shard(self, outputs: Outputs) -> tuple[Leaf, ...]:
        """The outputs of one shard, from `outputs` that the user declared with their global shapes."""
        return self._of_shard(outputs.paths(), outputs.leaves, _output_specs(self.wanted.out_specs, outputs))

    def _of_shard(
        self, paths: Iterable[str], leaves: Iterable[Leaf], specs: Iterable[PartitionSpec]
    ) -> tuple[Leaf, ...]:
        named = zip(paths, leaves, specs, strict=True)
        return tuple(replace(leaf, shape=shard_shape(path, leaf.shape, spec, self.sizes)) for path, leaf, spec in named)

    def out_specs(self, outputs: Outputs) -> tuple[PartitionSpec, ...]:
        """One spec for each array of the outputs of a shard."""
        specs = [without_axes(spec, self.manual) for spec in _output_specs(self.wanted.out_specs, outputs)]
        for path, leaf, spec in zip(outputs.paths(), outputs.leaves, specs, strict=True):
            check_spec(path, leaf.shape, spec, of=" of a shard")
            if missing := self.varying - spec_axes(spec):
                raise ShardingError(differs_along(self.name, path, spec, missing))
            if repeated := spec_axes(spec) - self.varying:
                raise ShardingError(repeats_along(self.name, path, spec, repeated))
        return tuple(specs)


def kinds_of(mesh: AnyMesh) -> dict[str, AxisType]:
    """Of each axis of a mesh, whether it is Auto, Explicit or Manual."""
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True))


def _output_specs(specs: SpecTree, outputs: Outputs) -> list[PartitionSpec]:
    leaves = jax.tree.unflatten(outputs.tree, range(len(outputs.statics)))
    spread_over = spread("out_specs", specs, leaves)
    return [spec for spec, static in zip(spread_over, outputs.statics, strict=True) if static is None]
