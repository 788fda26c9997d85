"""Texts of errors about how a call is split."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jax.sharding import AxisType, NamedSharding, PartitionSpec
from t2j_core.extend import CallTree, describe

from ._wanted import AnyMesh


def listed_axes(axes: Collection[str]) -> str:
    """Mesh axes in quotes."""
    return ", ".join(f'"{axis}"' for axis in sorted(axes))


def unknown_axes(name: str, unknown: Collection[str], mesh: AnyMesh) -> str:
    """For specs that name axes which the mesh does not have."""
    return describe(
        f"The specs of {name} name a mesh axis that does not exist.",
        expected=f"axes of the mesh {dict(mesh.shape)}",
        got=listed_axes(unknown),
        remedy="Correct the spec, or use a mesh with that axis.",
    )


def wrapped_with_another_mesh(name: str, mesh: AnyMesh, context: AnyMesh) -> str:
    """For the option `mesh` in the context of another mesh."""
    return describe(
        f"{name} was wrapped with a mesh that differs from the mesh of the call.",
        expected=f"mesh {dict(mesh.shape)}",
        got=f"{dict(context.shape)} from `jax.set_mesh` or `jax.shard_map`",
        remedy="Wrap it without `mesh=`: the mesh of the call is used then.",
    )


def on_another_mesh(name: str, path: str, sharding: NamedSharding, mesh: AnyMesh) -> str:
    """For an operand on a mesh that is not that of the call."""
    return describe(
        f"{path} of {name} is split over a mesh that differs from the mesh of the call.",
        expected=f"an array on the mesh {dict(mesh.shape)}",
        got=f"{sharding.spec} on the mesh {dict(sharding.mesh.shape)}",
        remedy="Move it with `jax.device_put`, or call it with arrays of one mesh.",
    )


def differs_along(name: str, path: str, spec: PartitionSpec, missing: Collection[str]) -> str:
    """For an output whose spec lacks axes that operands are split over."""
    return describe(
        f"{path} of {name} differs from device to device, but its spec says that it is the same along "
        f"{listed_axes(missing)}.",
        expected=f"a spec with {listed_axes(missing)}, over which operands are split",
        got=f"{spec}",
        remedy="Add the axis to `out_specs`. For a sum or a mean over devices call inside `jax.shard_map`, and "
        "`jax.lax.psum` the result.",
    )


def repeats_along(name: str, path: str, spec: PartitionSpec, repeated: Collection[str]) -> str:
    """For an output whose spec has axes that no operand is split over."""
    return describe(
        f"{path} of {name} is split over {listed_axes(repeated)}, but no operand is: all devices would do the same.",
        expected=f"an operand that is split over {listed_axes(repeated)}",
        got=f"{spec} for {path}",
        remedy="Shard an operand over that axis or give `in_specs`; or remove the axis from `out_specs`.",
    )


def no_in_specs(name: str, call_tree: CallTree, types: Sequence[Any], kinds: Mapping[str, AxisType]) -> str:
    """For a traced call on Auto axes whose operands have no specs."""
    operands = ", ".join(
        f"{path}: {'array' if t is None else t.str_short(True)}"
        for path, t in zip(call_tree.paths(), types, strict=True)
    )
    autos = {axis for axis, kind in kinds.items() if kind == AxisType.Auto}
    return describe(
        f"{name} has `out_specs`, but while JAX traces, the sharding of its operands is not known: "
        f"{listed_axes(autos)} are Auto axes.",
        expected="`in_specs`, or sharded arrays as examples, or a mesh with Explicit axes",
        got=operands,
        remedy="Pass `in_specs=` with one spec for each positional argument, `P()` for a replicated one.",
    )
