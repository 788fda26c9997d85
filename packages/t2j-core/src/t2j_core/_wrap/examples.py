"""The examples that users give to `torch2jax`, and what they say of later calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import torch

from .. import _compat
from .._base.dtypes import canonical, dtype_j2t, dtype_t2j
from .._base.errors import ArgumentError, describe
from .._signature.call_tree import CallTree, PyTreeDef, split
from .._signature.signature import Leaf, leaf_of
from .arguments import key_data

Dtypes = tuple[tuple[int, torch.dtype], ...]
"""(index of a data leaf, its torch dtype), for those whose dtype JAX cannot store."""

_LARGEST_KEPT = 1 << 20


class _ExampleArray(np.ndarray):  # type: ignore[type-arg,unused-ignore]
    """A `ShapeDtypeStruct` that counts as data; zero strides, so no memory."""

    def __new__(cls, struct: jax.ShapeDtypeStruct) -> Any:
        if jax.numpy.issubdtype(struct.dtype, jax.dtypes.extended):
            struct = jax.eval_shape(jax.random.key_data, struct)
        return np.broadcast_to(np.zeros((), struct.dtype), struct.shape).view(cls)


class ExampleValues:
    """Values for inference: one tensor for each operand, None for those that are shapes only."""

    def __init__(self, data: Sequence[object] = (), operands: Sequence[Leaf] = ()) -> None:
        self._operands = tuple(operands)
        with _compat.default_torch_state(("cpu",)):
            self._values = [_value_of(leaf, like) for leaf, like in zip(data, operands, strict=True)]

    def matching(self, operands: Sequence[Leaf]) -> Sequence[torch.Tensor | None]:
        """The values, if the operands of a call have their shapes and dtypes."""
        return self._values if self._operands == tuple(operands) else ()

    def forget_large(self) -> None:
        """Drop values that would take memory for as long as the wrapped function lives."""
        if sum(leaf.nbytes for leaf in self._operands) > _LARGEST_KEPT:
            self._values = [None] * len(self._values)


def _value_of(leaf: object, like: Leaf) -> torch.Tensor | None:
    if isinstance(leaf, torch.Tensor):
        has_values = not leaf.is_meta and _compat.has_data(leaf)
        return leaf.detach().to("cpu", like.torch_dtype) if has_values else None
    if isinstance(leaf, (_ExampleArray, _compat.Tracer)) or not isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
        return None
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return None
    array = np.array(leaf, order="C")  # `torch.from_numpy` refuses bfloat16: through its bytes
    if array.size == 0:
        return torch.empty(array.shape, dtype=like.torch_dtype)
    tensor = torch.from_numpy(array.reshape(-1).view(np.uint8)).view(dtype_j2t(array.dtype))
    return tensor.reshape(array.shape).to(like.torch_dtype)


@dataclass(frozen=True)
class GivenExamples:
    """What the examples of a function say of its calls. Without examples it says nothing."""

    structure: PyTreeDef | None = None
    """The tree of the arguments, which all calls must have."""
    dtypes: Mapping[int, torch.dtype] = field(default_factory=dict)
    """The torch dtypes of data leaves, for those that JAX cannot store."""
    values: ExampleValues = field(default_factory=ExampleValues)

    def torch_dtypes(self, name: str, data: Sequence[object], call_tree: CallTree) -> Dtypes:
        """The torch dtypes that JAX cannot store: of tensors among the arguments of a call, or of their examples."""
        if self.structure is not None and call_tree.structure != self.structure:
            raise ArgumentError(
                describe(
                    f"{name} was called with a different tree of arguments than its examples.",
                    expected=f"{self.structure}",
                    got=f"{call_tree.structure}",
                    remedy="Call it as in the examples, or wrap it without examples to call it in any way.",
                )
            )
        found = dict(self.dtypes)
        for index, leaf in enumerate(data):
            if isinstance(leaf, torch.Tensor) and _is_wider_than_jax(leaf.dtype):
                found[index] = leaf.dtype
            elif index in found and canonical(dtype_t2j(found[index])) != canonical(_stored(leaf)):
                del found[index]
        return tuple(found.items())


def _is_wider_than_jax(dtype: torch.dtype) -> bool:
    return canonical(dtype_t2j(dtype)) != dtype_t2j(dtype)


def _stored(leaf: Any) -> np.dtype[Any]:
    """The JAX dtype of a data leaf, 64-bit ones included."""
    return dtype_t2j(leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf.dtype


def read_examples(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], *, has_key: bool
) -> tuple[GivenExamples, CallTree, tuple[Leaf, ...]]:
    """What the examples say, and the signature that they are of. `has_key`: the first one is a JAX key."""
    data, call_tree = split(jax.tree.map(_as_data, args), jax.tree.map(_as_data, dict(kwargs)))
    tensors = {i: leaf.dtype for i, leaf in enumerate(data) if isinstance(leaf, torch.Tensor)}
    dtypes = {i: dtype for i, dtype in tensors.items() if _is_wider_than_jax(dtype)}
    if has_key and data:
        data[0] = jax.eval_shape(key_data, jax.ShapeDtypeStruct(data[0].shape, data[0].dtype))
    operands = [leaf_of(leaf.shape, canonical(_stored(leaf)), dtypes.get(i)) for i, leaf in enumerate(data)]
    given = GivenExamples(call_tree.structure, dtypes, ExampleValues(data, operands))
    return given, call_tree, tuple(operands)


def _as_data(leaf: object) -> object:
    """An example as something that counts as data."""
    return _ExampleArray(leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
