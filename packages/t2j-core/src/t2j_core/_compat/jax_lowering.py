"""What a lowering rule asks of its context."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core
import numpy as np
from jax.interpreters import mlir

from .._base.text import utf8


def is_exporting(ctx: Any) -> bool:
    """Whether a lowering is made for `jax.export`."""
    return bool(ctx.module_context.lowering_parameters.for_export)


def devices_of(ctx: Any) -> int:
    """How many devices the program that is lowered runs on."""
    context = ctx.module_context.axis_context
    mesh = getattr(context, "mesh", None)  # under `jax.shard_map`
    whole = 1 if mesh is None else mesh.size
    return int(getattr(context, "num_devices", None) or whole)


def is_partly_manual(ctx: Any) -> bool:
    """Whether a lowering is inside a `jax.shard_map` over some of the mesh axes, with the others left to XLA."""
    context = ctx.module_context.axis_context
    mesh, manual = getattr(context, "mesh", None), getattr(context, "manual_axes", ())
    return mesh is not None and set(manual) != set(mesh.axis_names)


def whole_mesh(ctx: Any) -> Any | None:
    """A mesh of all devices of the program that is lowered; None if there is one, or each has a program of its own."""
    count = int(getattr(ctx.module_context.axis_context, "num_devices", None) or 1)
    if count == 1:
        return None
    set_by_user = jax.sharding.get_abstract_mesh()  # which `jax.shard_map` insists on
    return jax.sharding.AbstractMesh((count,), ("device",)) if set_by_user.empty else set_by_user


def keep_alive(ctx: Any, value: object) -> None:
    """Let the lowered program own `value` until it is compiled."""
    ctx.module_context.add_keepalive(value)


def register_lowering(primitive: Any, rule: Any) -> None:
    """Register how calls are lowered, for all platforms, and one by one, as jax before 0.7 always does.

    Later versions lower equal calls once. But each is to see which call its ticket comes from, and whether it is in a
    reducer.

    Rules for single platforms fail where calls are lowered one by one for several: `lower_per_platform` in
    jax/_src/interpreters/mlir.py adds a tuple to a list then.
    """
    has_cache = "cacheable" in inspect.signature(mlir.register_lowering).parameters
    options: Any = {"cacheable": False} if has_cache else {}
    mlir.register_lowering(primitive, rule, **options)


def platforms_of(ctx: Any) -> Sequence[str]:
    """The platforms that are being lowered for."""
    platforms: Sequence[str] = ctx.platforms or ctx.module_context.platforms
    return platforms


def paired(ctx: Any, operand: Any, target: str) -> dict[str, Any]:
    """Attributes that a call being lowered shares with the one that `operand` comes from, if that is one of `target`.

    The number of a pair is its own in this module, and the same wherever the module is lowered again. There are no such
    attributes where the operand comes from another block: what a loop or a branch hands over belongs to no one call.
    """
    ir = mlir.ir
    maker, surrounding = operand.owner, ir.InsertionPoint.current.block.owner
    # Every region of JAX's has one block. (jax 0.6: an operation does not tell its block.)
    if isinstance(maker, ir.Block) or maker.operation.parent.operation != surrounding.operation:
        return {}
    attributes = maker.operation.attributes
    if "call_target_name" not in attributes or ir.StringAttr(attributes["call_target_name"]).value != target:
        return {}
    items: Any = ir.DictAttr(attributes["mhlo.backend_config"])
    config = {item.name: item.attr for item in items}
    if "pair" not in config:
        number = len(ctx.module_context.keepalives)
        config["pair"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), number)
        attributes["mhlo.backend_config"] = ir.DictAttr.get(config)
    return {"pair": np.int64(ir.IntegerAttr(config["pair"]).value)}


def named(ctx: Any, name: str) -> contextlib.AbstractContextManager[Any]:
    """Within, what is lowered goes by `name`: in the compiled program, and so in profiles."""
    text = "/".join(filter(None, (str(ctx.name_stack), "torch_call", name)))
    return mlir.ir.Location.name(utf8(text), childLoc=mlir.ir.Location.current)
