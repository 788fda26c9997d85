"""How a call is split over devices, decided when it is traced."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from t2j_core import ShardingError
from t2j_core.extend import (
    CallTree,
    Leaf,
    Outputs,
    Tracer,
    describe,
    grouped,
    manual_axes,
    reshard,
    short_avals,
)

from ._specs import (
    Shape,
    Sizes,
    SpecTree,
    check_spec,
    is_same,
    is_spec,
    shard_shape,
    spec_axes,
    spread,
    tree_axes,
    without_axes,
)

AnyMesh = Mesh | AbstractMesh
Hints = tuple[NamedSharding | None, ...]  # of the data leaves


@dataclass(frozen=True)
class Wanted:
    """The sharding that the user asked for, and the shardings of concrete arrays."""

    out_specs: SpecTree
    in_specs: SpecTree = None
    mesh: AnyMesh | None = None
    hints: Hints = field(default=(), repr=False)
    """The shardings of the arrays of an eager call, or else of the examples, used where `in_specs` is missing."""
    is_eager: bool = field(default=False, repr=False)
    has_key: bool = field(default=False, repr=False)
    """Whether the first operand is the data of a JAX key, which is replicated."""

    def with_hints(self, leaves: Sequence[Any], *, is_eager: bool) -> Wanted:
        """The same for arrays with these shardings."""
        shardings = [None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None) for leaf in leaves]
        hints = tuple(s if isinstance(s, NamedSharding) else None for s in shardings)
        return replace(self, hints=hints, is_eager=is_eager) if any(hints) else self

    def __deepcopy__(self, memo: dict[int, Any]) -> Wanted:
        """The same object: it is immutable, and the devices of a mesh cannot be copied."""
        return self


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
            return (f"sharding: a plain call, inside `jax.shard_map` over {_listed(self.manual)} of {mesh}",)
        given = "" if self.wanted.in_specs is not None else " (as the arguments arrive)"
        ins = grouped(zip(call_tree.paths(), map(str, self.in_specs), strict=True))
        outs = grouped(zip(outputs.paths(), map(str, self.out_specs(outputs)), strict=True))
        return (
            f"sharding: once per shard of ({short_avals(operands)}), over {_listed(self.axes)} of {mesh}",
            f"in_specs{given}: {'; '.join(ins)}",
            f"out_specs: {'; '.join(outs)}",
        )

    @property
    def varying(self) -> frozenset[str]:
        """The axes along which the operands differ from device to device."""
        return frozenset().union(*map(spec_axes, self.in_specs))

    def as_specified(self, x: jax.Array, spec: PartitionSpec) -> jax.Array:
        """An operand with its Explicit axes sharded as its spec says; `jax.shard_map` shards Auto axes itself."""
        others = frozenset(axis for axis, kind in _kinds(self.mesh).items() if kind != AxisType.Explicit)
        have, want = (without_axes(it, others) for it in (jax.typeof(x).sharding.spec, spec))
        return x if is_same(have, want) else reshard(x, NamedSharding(self.mesh, want))

    def arranged(self, operands: Sequence[Any]) -> Sequence[Any]:
        """The operands, sharded as `jax.shard_map` requires."""
        return list(map(self.as_specified, operands, self.in_specs)) if self.in_specs else operands

    def shard_shapes(self, call_tree: CallTree, shapes: Sequence[Shape]) -> list[Shape]:
        """The shapes of one shard of each operand."""
        named = zip(call_tree.paths(), shapes, self.in_specs, strict=True)
        return [shard_shape(path, shape, spec, self.sizes) for path, shape, spec in named]

    def declared(self, outputs: Outputs) -> list[Shape]:
        """The shapes of one shard of outputs that were declared with their global shapes."""
        specs = _output_specs(self.wanted.out_specs, outputs)
        named = zip(outputs.paths(), outputs.leaves, specs, strict=True)
        return [shard_shape(path, leaf.shape, spec, self.sizes) for path, leaf, spec in named]

    def out_specs(self, outputs: Outputs) -> tuple[PartitionSpec, ...]:
        """One spec for each array of the outputs of a shard."""
        specs = [without_axes(spec, self.manual) for spec in _output_specs(self.wanted.out_specs, outputs)]
        for path, leaf, spec in zip(outputs.paths(), outputs.leaves, specs, strict=True):
            check_spec(path, leaf.shape, spec, of=" of a shard")
            if missing := self.varying - spec_axes(spec):
                raise ShardingError(_differs(self.name, path, spec, missing))
            if repeated := spec_axes(spec) - self.varying:
                raise ShardingError(_repeats(self.name, path, spec, repeated))
        return tuple(specs)


def _output_specs(specs: SpecTree, outputs: Outputs) -> list[PartitionSpec]:
    leaves = jax.tree.unflatten(outputs.tree, range(len(outputs.statics)))
    spread_over = spread("out_specs", specs, leaves)
    return [spec for spec, static in zip(spread_over, outputs.statics, strict=True) if static is None]


def decide(name: str, wanted: Wanted, call_tree: CallTree, operands: Sequence[Any]) -> Plan | None:
    """The plan of a call; None if there is no mesh. `operands` are tracers, or anything with a shape."""
    types = [jax.typeof(x) if isinstance(x, jax.Array) else None for x in operands]
    context = jax.sharding.get_abstract_mesh()
    mesh = _find_mesh(name, wanted, context, types)
    if mesh is None:
        return None
    sizes = dict(mesh.shape)
    kinds = _kinds(mesh)
    named = tree_axes(wanted.out_specs) | tree_axes(wanted.in_specs)
    if unknown := named - set(sizes):
        raise ShardingError(_unknown(name, unknown, mesh))
    manual = frozenset(axis for axis in named if kinds[axis] == AxisType.Manual)
    plan = Plan(name, wanted, mesh, not context.empty, sizes, frozenset(), manual, ())
    if manual and manual == named:
        return plan
    free = named - manual or {axis for axis in sizes if kinds[axis] != AxisType.Manual}
    specs = tuple(without_axes(spec, manual) for spec in _input_specs(name, wanted, call_tree, types, free, mesh))
    axes = manual_axes(mesh, frozenset().union(named - manual, *map(spec_axes, specs)))
    return plan._replace(axes=axes, in_specs=specs)


def _kinds(mesh: AnyMesh) -> dict[str, AxisType]:
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True))


def _find_mesh(name: str, wanted: Wanted, context: AbstractMesh, types: Sequence[Any]) -> AnyMesh | None:
    if not context.empty:
        if wanted.mesh is not None and wanted.mesh.shape_tuple != context.shape_tuple:
            raise ShardingError(
                describe(
                    f"{name} was wrapped with a mesh that differs from the mesh of the call.",
                    expected=f"mesh {dict(wanted.mesh.shape)}",
                    got=f"{dict(context.shape)} from `jax.set_mesh` or `jax.shard_map`",
                    remedy="Wrap it without `mesh=`: the mesh of the call is used then.",
                )
            )
        return context
    if wanted.mesh is not None:
        return wanted.mesh
    of_hints = [hint.mesh for hint in wanted.hints if hint is not None]
    of_types = [t.sharding.mesh for t in types if t is not None and t.sharding.mesh is not None]
    meshes = [mesh for mesh in (*of_hints, *of_types) if not mesh.empty]
    return meshes[0] if meshes else None


def _input_specs(
    name: str, wanted: Wanted, call_tree: CallTree, types: Sequence[Any], free: Collection[str], mesh: AnyMesh
) -> list[PartitionSpec]:
    if wanted.in_specs is not None:
        return input_specs(wanted.in_specs, call_tree, has_key=wanted.has_key)
    kinds = _kinds(mesh)
    if any(types) and all(kinds[axis] == AxisType.Explicit for axis in free):
        return _arriving(name, call_tree, [t and t.sharding for t in types], mesh)
    if len(wanted.hints) == len(types):
        return _arriving(name, call_tree, wanted.hints, mesh)
    if not tree_axes(wanted.out_specs):
        return [PartitionSpec()] * len(types)
    raise ShardingError(_unspecified(name, call_tree, types, kinds))


def _arriving(
    name: str, call_tree: CallTree, shardings: Sequence[NamedSharding | None], mesh: AnyMesh
) -> list[PartitionSpec]:
    """The specs of operands that arrive with shardings."""
    for path, sharding in zip(call_tree.paths(), shardings, strict=True):
        if sharding is not None and spec_axes(sharding.spec) and sharding.mesh.shape_tuple != mesh.shape_tuple:
            raise ShardingError(_elsewhere(name, path, sharding, mesh))
    return [PartitionSpec() if sharding is None else sharding.spec for sharding in shardings]


def input_specs(specs: SpecTree, call_tree: CallTree, *, has_key: bool = False) -> list[PartitionSpec]:
    """One spec for each operand: `specs` is one for all, or a tuple with a tree for each positional argument.

    One for all is not for the JAX key in front, if there is one.
    """
    args, kwargs = jax.tree.unflatten(call_tree.structure, range(len(call_tree.statics)))
    if is_spec(specs):
        over_all = spread("in_specs", specs, (args, kwargs))
        if has_key:
            over_all[0] = PartitionSpec()
    else:
        specs = tuple(specs) if isinstance(specs, list) else specs
        over_all = spread("in_specs", specs, args) + spread("in_specs", None, kwargs)
    return [spec for spec, static in zip(over_all, call_tree.statics, strict=True) if static is None]


def local_leaves(plan: Plan | None, call_tree: CallTree, operands: Sequence[Leaf]) -> tuple[Leaf, ...]:
    """The operands of one shard."""
    if plan is None or not plan.axes:
        return tuple(operands)
    shapes = plan.shard_shapes(call_tree, [leaf.shape for leaf in operands])
    return tuple(replace(leaf, shape=shape) for leaf, shape in zip(operands, shapes, strict=True))


# --- error texts --------------------------------------------------------------------------------------------------


def _listed(axes: frozenset[str] | set[str]) -> str:
    return ", ".join(f'"{axis}"' for axis in sorted(axes))


def _unknown(name: str, unknown: frozenset[str], mesh: AnyMesh) -> str:
    return describe(
        f"The specs of {name} name a mesh axis that does not exist.",
        expected=f"axes of the mesh {dict(mesh.shape)}",
        got=_listed(unknown),
        remedy="Correct the spec, or use a mesh with that axis.",
    )


def _elsewhere(name: str, path: str, sharding: NamedSharding, mesh: AnyMesh) -> str:
    return describe(
        f"{path} of {name} is split over a mesh that differs from the mesh of the call.",
        expected=f"an array on the mesh {dict(mesh.shape)}",
        got=f"{sharding.spec} on the mesh {dict(sharding.mesh.shape)}",
        remedy="Move it with `jax.device_put`, or call it with arrays of one mesh.",
    )


def _differs(name: str, path: str, spec: PartitionSpec, missing: frozenset[str]) -> str:
    return describe(
        f"{path} of {name} differs from device to device, but its spec says that it is the same along "
        f"{_listed(missing)}.",
        expected=f"a spec with {_listed(missing)}, over which operands are split",
        got=f"{spec}",
        remedy="Add the axis to `out_specs`. For a sum or a mean over devices call inside `jax.shard_map`, and "
        "`jax.lax.psum` the result.",
    )


def _repeats(name: str, path: str, spec: PartitionSpec, repeated: frozenset[str]) -> str:
    return describe(
        f"{path} of {name} is split over {_listed(repeated)}, but no operand is: every device would compute the same.",
        expected=f"an operand that is split over {_listed(repeated)}",
        got=f"{spec} for {path}",
        remedy="Shard an operand over that axis or give `in_specs`; or remove the axis from `out_specs`.",
    )


def _unspecified(name: str, call_tree: CallTree, types: Sequence[Any], kinds: Mapping[str, AxisType]) -> str:
    operands = ", ".join(
        f"{path}: {'array' if t is None else t.str_short(True)}"
        for path, t in zip(call_tree.paths(), types, strict=True)
    )
    autos = {axis for axis, kind in kinds.items() if kind == AxisType.Auto}
    return describe(
        f"{name} has `out_specs`, but while JAX traces, the sharding of its operands is not known: "
        f"{_listed(autos)} are Auto axes.",
        expected="`in_specs`, or sharded arrays as examples, or a mesh with Explicit axes",
        got=operands,
        remedy="Pass `in_specs=` with one spec for each positional argument, `P()` for a replicated one.",
    )
