"""Mesh axes of avals: how values vary over them and are sharded over them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.extend.core
from jax.core import AbstractValue, ShapedArray
from jax.sharding import AxisType
from jax.typing import DTypeLike


def varying_axes(aval: AbstractValue) -> frozenset[str]:
    """The manual mesh axes (of `jax.shard_map`) that a value varies over."""
    manual = getattr(aval, "mat", None)  # jax 0.10 and newer
    return frozenset(manual.varying if manual is not None else getattr(aval, "vma", ()))


def unsummed_axes(aval: AbstractValue) -> frozenset[str]:
    """The mesh axes over which a value is a sum that is not computed yet, or, outside `jax.shard_map`, its gradient."""
    spec = getattr(getattr(aval, "sharding", None), "spec", None)
    of_spec = (getattr(spec, kind, None) or () for kind in ("unreduced", "reduced"))
    return _manual_axes(aval, "unreduced").union(*of_spec)


def _manual_axes(aval: AbstractValue, kind: str) -> frozenset[str]:
    """The manual mesh axes that are `unreduced`, or `reduced`: the gradient is unreduced (jax 0.10 and newer)."""
    return frozenset(getattr(getattr(aval, "mat", None), kind, ()))


def vary_alike(operands: Sequence[jax.Array]) -> list[jax.Array]:
    """Cast every operand to vary over the union of the operands' manual axes.

    The transpose of the cast is the `psum` that the gradient of a replicated operand needs. An axis over which all
    operands are reduced is left as it is: the pullback of such a call takes and returns what is unreduced.
    """
    avals = [jax.typeof(x) for x in operands]
    reduced = [_manual_axes(aval, "reduced") for aval in avals]
    union = frozenset().union(*map(varying_axes, avals), *reduced)
    if avals:
        unsummed = (own | _manual_axes(aval, "unreduced") for own, aval in zip(reduced, avals, strict=True))
        union -= frozenset.intersection(*unsummed)
    return [_cast_to_varying(x, union - varying_axes(aval)) for x, aval in zip(operands, avals, strict=True)]


def _cast_to_varying(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    reduced = axes & _manual_axes(jax.typeof(x), "reduced")
    for part in (reduced, axes - reduced):  # one cast has one kind of axes
        if part and hasattr(jax.lax, "pcast"):
            x = jax.lax.pcast(x, tuple(sorted(part)), to="varying")
        elif part:
            x = jax.lax.pvary(x, tuple(sorted(part)))  # type: ignore[attr-defined]  # jax before 0.8
    return x


def result_aval(shape: tuple[int, ...], dtype: DTypeLike, operands: Sequence[Any]) -> ShapedArray:
    """The abstract value of a result: replicated over the mesh, varying over the manual axes of the operands.

    It is unreduced where the linear operands of a pullback are, whose other operands are then reduced.
    """

    def marks(aval: Any) -> tuple[int, int]:
        return len(_manual_axes(aval, "unreduced")), len(varying_axes(aval))

    template = max(operands, key=marks, default=None)
    if template is None:
        return ShapedArray(shape, dtype)
    sharding = ShapedArray(shape, dtype).sharding
    if template.sharding.mesh is not None:
        spec = jax.sharding.PartitionSpec(*(None for _ in shape))
        sharding = jax.sharding.NamedSharding(template.sharding.mesh, spec)
    return template.update(shape=shape, dtype=dtype, weak_type=False, sharding=sharding)


def explicit_spec(aval: AbstractValue) -> jax.sharding.PartitionSpec | None:
    """The partition spec in the type of `aval` if it shards a dimension over an Explicit mesh axis, else None."""
    spec = getattr(getattr(aval, "sharding", None), "spec", None)
    if spec is None:
        return None
    parts = getattr(spec, "partitions", spec)  # jax 0.10: a spec with `reduced` or `unreduced` refuses to be iterated
    return spec if any(part is not None for part in parts) else None


if hasattr(jax, "reshard"):
    _reshard: Any = jax.reshard
elif hasattr(jax.sharding, "reshard"):  # jax 0.7
    _reshard = jax.sharding.reshard
else:
    _reshard = importlib.import_module("jax.experimental.shard").reshard


def reshard(x: jax.Array, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """Move an array with Explicit axes to another sharding."""
    return _reshard(x, sharding)


def manual_axes(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, axes: Iterable[str]) -> frozenset[str]:
    """The `axis_names` for a `jax.shard_map` that splits over `axes`.

    Auto axes are always among them: the partitioner has nothing to decide about a torch call. With GSPMD, and in
    jax before 0.8 if the call is batched over an axis, no axis can be left out.
    """
    wanted = frozenset(axes)
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    is_every_axis_manual = not (hasattr(jax, "reshard") and getattr(jax.config, "jax_use_shardy_partitioner", True))
    auto = {
        axis
        for axis, kind in kinds.items()
        if kind == AxisType.Auto or (is_every_axis_manual and kind == AxisType.Explicit)
    }
    return wanted | auto if wanted else wanted
