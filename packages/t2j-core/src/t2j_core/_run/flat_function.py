"""A function of the arguments of a signature as a flat function: one tensor per operand to a tuple of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import torch

from .._base.errors import OutputError, describe
from .._signature.call_tree import PyTreeDef, Static
from .._signature.containers import as_pytree
from .._signature.reordered import order
from .._signature.signature import Signature

FlatFunction = Callable[..., tuple[torch.Tensor, ...]]
"""Takes one tensor per operand, each of its torch dtype, and returns a tuple of tensors."""


def flat_function(call: Callable[..., Any], signature: Signature) -> FlatFunction:
    """`call`, which takes the arguments of the signature, as a flat function.

    It compares what `call` returns with the signature. Keyword arguments go on to `call`.
    """
    merge = signature.call_tree.merger()
    orders: dict[PyTreeDef, tuple[int, ...]] = {}

    def run(*tensors: torch.Tensor, **extra: Any) -> tuple[torch.Tensor, ...]:
        args, kwargs = merge(tensors)
        return tuple(_tensors_in(signature, call(*args, **kwargs, **extra), orders))

    return run


def with_copies(f: FlatFunction, indices: Sequence[int]) -> FlatFunction:
    """`f`, which may write into the operands `indices`: it gets copies of them."""
    if not indices:
        return f

    def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return f(*(t.clone() if i in indices else t for i, t in enumerate(x)))

    return run


def _tensors_in(signature: Signature, output: object, orders: dict[PyTreeDef, tuple[int, ...]]) -> list[Any]:
    """The tensors of an output, after its tree and constants were compared with the signature.

    `orders` remembers trees that are like that of the signature but for their containers.
    """
    outputs = signature.outputs
    if outputs.single and isinstance(output, torch.Tensor):
        return [output]
    items, tree = jax.tree.flatten(as_pytree(output))
    if tree != outputs.tree:
        if tree not in orders:
            orders[tree] = order(signature, tree)
        items = [items[place] for place in orders[tree]]
    tensors = []
    for item, static in zip(items, outputs.statics, strict=True):
        if static is None:
            tensors.append(item)
        elif isinstance(item, torch.Tensor) or Static.of(item) != static:
            raise _another_constant(signature, static, item)
    return tensors


def _another_constant(signature: Signature, static: Static, item: object) -> OutputError:
    return OutputError(
        describe(
            f"{signature.name} returned a constant that differs from the one it returned when JAX traced it.",
            expected=f"{static.kind.__name__}",
            got=f"another {type(item).__name__}",
            remedy="Return values that change from call to call as tensors: `torch.tensor(value)`.",
        )
    )
