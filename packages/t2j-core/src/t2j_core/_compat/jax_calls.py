"""Custom calls of a module that is being lowered, as operations of MLIR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jax.interpreters import mlir

_MOVABLE = "stablehlo.reshape"


class Call(Protocol):
    """A custom call: an operation of MLIR."""

    @property
    def attributes(self) -> Any: ...
    @property
    def operands(self) -> Any: ...
    @property
    def results(self) -> Any: ...


def making_call(operand: mlir.ir.Value[Any], target: str) -> Call | None:
    """The custom call of `target` that makes an operand of a call being lowered; None if there is none in its block.

    What enters a loop or a branch may come from several calls.
    """
    ir = mlir.ir
    maker, surrounding = operand.owner, ir.InsertionPoint.current.block.owner
    # Operations are compared, as each region that JAX makes has one block. (jax 0.6: they do not know their block.)
    if maker is None or isinstance(maker, ir.Block):
        return None
    parent = maker.operation.parent
    if parent is None or parent.operation != surrounding.operation:
        return None
    attributes = maker.operation.attributes
    if "call_target_name" not in attributes or attributes["call_target_name"] != ir.StringAttr.get(target):
        return None
    found: Call = maker.operation
    return found


def pair_attributes(ctx: mlir.LoweringRuleContext, operand: mlir.ir.Value[Any], target: str) -> dict[str, Any]:
    """The attributes that pair a call being lowered with the call of `target` that makes its operand; none without one.

    The number of a pair is unique in the module, and the same whenever the module is lowered again.
    """
    ir, maker = mlir.ir, making_call(operand, target)
    if maker is None:
        return {}
    items: Any = ir.DictAttr(maker.attributes["mhlo.backend_config"])
    config = {item.name: item.attr for item in items}
    if "pair" not in config:
        number = len(ctx.module_context.keepalives)
        config["pair"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), number)
        maker.attributes["mhlo.backend_config"] = ir.DictAttr.get(config)
    return {"pair": np.int64(int(ir.IntegerAttr(config["pair"])))}


def movable(values: Sequence[Any]) -> list[mlir.ir.Value[Any]]:
    """The values, each through an operation of its own that does nothing, which `Unused` can move."""
    create = mlir.ir.Operation.create
    return [create(_MOVABLE, results=[value.type], operands=[value]).results[0] for value in values]


class Unused:
    """The first results of a call, made `movable`, while no operation uses them yet."""

    def __init__(self, operations: Sequence[mlir.ir.Operation]) -> None:
        self._operations = operations

    @classmethod
    def of(cls, call: Call, count: int) -> Unused | None:
        """The first results of a call; None if one is used or not movable."""
        operations = []
        for result in list(call.results)[:count]:
            users = [use.owner.operation for use in result.uses]
            if len(users) != 1 or users[0].name != _MOVABLE or list(users[0].results[0].uses):
                return None
            operations += users
        return cls(operations)

    def become(self, values: Sequence[mlir.ir.Value[Any]]) -> None:
        """Have whatever uses the results from now on use results of another call, which was lowered last."""
        for operation, value in zip(self._operations, values, strict=True):
            operation.operands[0] = value
            maker: Any = value.owner
            operation.move_after(maker)
