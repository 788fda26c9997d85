"""Decides how a call is split, when it is traced: finds its mesh, and the specs of its operands."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from t2j_core import ShardingError
from t2j_core.extend import CallTree, manual_axes

from ._plan import Plan, kinds_of
from ._specs import SpecTree, is_spec, spec_axes, spread, tree_axes, without_axes
from ._texts import no_in_specs, on_another_mesh, unknown_axes, wrapped_with_another_mesh
from ._wanted import AnyMesh, Wanted


def decide(name: str, wanted: Wanted, call_tree: CallTree, operands: Sequence[Any]) -> Plan | None:
    """The plan of a call; None if there is no mesh. `operands` are tracers, or anything with a shape."""
    types = [jax.typeof(x) if isinstance(x, jax.Array) else None for x in operands]
    context = jax.sharding.get_abstract_mesh()
    mesh = _find_mesh(name, wanted, context, types)
    if mesh is None:
        return None
    sizes = dict(mesh.shape)
    kinds = kinds_of(mesh)
    named = tree_axes(wanted.out_specs) | tree_axes(wanted.in_specs)
    if unknown := named - set(sizes):
        raise ShardingError(unknown_axes(name, unknown, mesh))
    manual = frozenset(axis for axis in named if kinds[axis] == AxisType.Manual)
    plan = Plan(name, wanted, mesh, not context.empty, sizes, frozenset(), manual, ())
    if manual and manual == named:
        return plan
    free = named - manual or {axis for axis in sizes if kinds[axis] != AxisType.Manual}
    specs = tuple(without_axes(spec, manual) for spec in _operand_specs(name, wanted, call_tree, types, free, mesh))
    axes = manual_axes(mesh, frozenset().union(named - manual, *map(spec_axes, specs)))
    return plan._replace(axes=axes, in_specs=specs)


def _find_mesh(name: str, wanted: Wanted, context: AbstractMesh, types: Sequence[Any]) -> AnyMesh | None:
    """The mesh of the context, else that of the options, else that of an operand."""
    if not context.empty:
        if wanted.mesh is not None and wanted.mesh.shape_tuple != context.shape_tuple:
            raise ShardingError(wrapped_with_another_mesh(name, wanted.mesh, context))
        return context
    if wanted.mesh is not None:
        return wanted.mesh
    of_hints = [hint.mesh for hint in wanted.hints if hint is not None]
    of_types = [t.sharding.mesh for t in types if t is not None and t.sharding.mesh is not None]
    meshes = [mesh for mesh in (*of_hints, *of_types) if not mesh.empty]
    return meshes[0] if meshes else None


def _operand_specs(
    name: str, wanted: Wanted, call_tree: CallTree, types: Sequence[Any], free: Collection[str], mesh: AnyMesh
) -> list[PartitionSpec]:
    """One spec for each operand: by `in_specs`, else as the operands arrive. `free` are the axes to split over."""
    if wanted.in_specs is not None:
        return _given(wanted.in_specs, call_tree, has_key=wanted.has_key)
    kinds = kinds_of(mesh)
    if any(types) and all(kinds[axis] == AxisType.Explicit for axis in free):
        return _arriving(name, call_tree, [t and t.sharding for t in types], mesh)
    if len(wanted.hints) == len(types):
        return _arriving(name, call_tree, wanted.hints, mesh)
    if not tree_axes(wanted.out_specs):
        return [PartitionSpec()] * len(types)
    raise ShardingError(no_in_specs(name, call_tree, types, kinds))


def _arriving(
    name: str, call_tree: CallTree, shardings: Sequence[NamedSharding | None], mesh: AnyMesh
) -> list[PartitionSpec]:
    """The specs of operands that arrive with shardings."""
    for path, sharding in zip(call_tree.paths(), shardings, strict=True):
        if sharding is not None and spec_axes(sharding.spec) and sharding.mesh.shape_tuple != mesh.shape_tuple:
            raise ShardingError(on_another_mesh(name, path, sharding, mesh))
    return [PartitionSpec() if sharding is None else sharding.spec for sharding in shardings]


def _given(specs: SpecTree, call_tree: CallTree, *, has_key: bool = False) -> list[PartitionSpec]:
    """The specs that `in_specs` gives: one for all operands, or a tuple with a tree for each positional argument.

    One for all does not apply to the JAX key in front, if there is one: that is replicated.
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
