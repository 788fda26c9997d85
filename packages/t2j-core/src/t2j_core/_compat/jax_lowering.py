"""Lowering: how rules are registered, and what a rule reads from its context."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from .._base.text import utf8


def is_exporting(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether the program is lowered for `jax.export`."""
    return bool(ctx.module_context.lowering_parameters.for_export)


def devices_of(ctx: mlir.LoweringRuleContext) -> int:
    """How many devices the program that is lowered runs on."""
    context = ctx.module_context.axis_context
    mesh = getattr(context, "mesh", None)  # under `jax.shard_map`
    whole = 1 if mesh is None else mesh.size
    return int(getattr(context, "num_devices", None) or whole)


def is_partly_manual(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether a lowering is inside a `jax.shard_map` over some of the mesh axes, with the others left to XLA."""
    context = ctx.module_context.axis_context
    mesh, manual = getattr(context, "mesh", None), getattr(context, "manual_axes", ())
    return mesh is not None and set(manual) != set(mesh.axis_names)


def whole_mesh(ctx: mlir.LoweringRuleContext) -> jax.sharding.AbstractMesh | None:
    """A mesh of all devices of the program that is lowered; None if there is one device, or one program for each."""
    count = int(getattr(ctx.module_context.axis_context, "num_devices", None) or 1)
    if count == 1:
        return None
    set_by_user = jax.sharding.get_abstract_mesh()  # `jax.shard_map` refuses any other mesh
    return jax.sharding.AbstractMesh((count,), ("device",)) if set_by_user.empty else set_by_user


def keep_alive(ctx: mlir.LoweringRuleContext, value: object) -> None:
    """Keep `value` alive until the lowered program is compiled."""
    ctx.module_context.add_keepalive(value)


def register_lowering(primitive: Primitive, rule: Callable[..., Any]) -> None:
    """Register the lowering rule of a primitive, for all platforms. It is called for each call.

    Since jax 0.7 equal calls are lowered once, unless the rule is not `cacheable`. But the rule depends on where a call
    is: which call its ticket comes from, and whether it is in a reducer.

    There is one rule for all platforms, which asks for `platforms_of`. With rules for single platforms, lowering for
    several of them fails if the rule is not cacheable: `lower_per_platform` in jax/_src/interpreters/mlir.py adds a
    tuple to a list.
    """
    has_cache = "cacheable" in inspect.signature(mlir.register_lowering).parameters
    options: Any = {"cacheable": False} if has_cache else {}
    mlir.register_lowering(primitive, rule, **options)


def platforms_of(ctx: mlir.LoweringRuleContext) -> Sequence[str]:
    """The platforms that are being lowered for."""
    platforms: Sequence[str] = ctx.platforms or ctx.module_context.platforms
    return platforms


def named(ctx: mlir.LoweringRuleContext, name: str) -> contextlib.AbstractContextManager[Any]:
    """Within, what is lowered has `name` in its location: in the compiled program, and so in profiles."""
    text = "/".join(filter(None, (str(ctx.name_stack), "torch_call", name)))
    return mlir.ir.Location.name(utf8(text), childLoc=mlir.ir.Location.current)
