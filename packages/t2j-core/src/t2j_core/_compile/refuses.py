"""`Refuses` and `RefusesMemory`: modes that refuse what a traced function cannot do."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.utils._pytree as torch_tree
from torch._ops import OpOverload

from .. import _compat
from .refusals import Refusals


class Refuses(_compat.DispatchMode):
    """Refuses Python that takes values of tensors, and writes into tensors that a function refers to.

    A trace would make such a write itself, once or twice.
    """

    def __init__(self, refusals: Refusals) -> None:
        super().__init__()
        self._refusals = refusals
        self.made: list[weakref.ref[torch.Tensor]] = []
        """The tensors of the trace."""

    def handle(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _depends_on_values(func, args):
            raise self._refusals.new(f"what it does depends on values (by `{func}`)")
        if not all(map(_compat.records_writes, _written(func, args, kwargs))):
            raise self._refusals.new("it writes into a tensor that it refers to, or that is made of such tensors alone")
        results = func(*args, **kwargs)
        self.made += [weakref.ref(t) for t in torch_tree.tree_leaves(results) if _compat.is_of_trace(t)]
        return results


_READ_MEMORY = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__)


class RefusesMemory(_compat.FunctionMode):
    """Refuses lists of the values of a tensor, and arrays of NumPy and others over its memory.

    The lists would be constants. In a trace a tensor has no memory, and the arrays read zeros.
    """

    def __init__(self, refusals: Refusals) -> None:
        super().__init__()
        self._refusals = refusals

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _READ_MEMORY:
            raise self._refusals.new(f"what it does depends on values (by `{func.__name__}`)")
        return func(*args, **kwargs)


def _depends_on_values(func: OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether Python gets values of tensors from an operation, or a tensor whose shape depends on them."""
    tags = getattr(func, "tags", ())
    if func is torch.ops.aten.index.Tensor:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags


def _written(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that an operation writes into."""
    schema = getattr(func, "_schema", None)  # higher-order operators have none
    if schema is None or not schema.is_mutable:
        return
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | dict(kwargs)
    for argument in schema.arguments:
        if argument.is_write:
            yield from (t for t in torch_tree.tree_leaves(given.get(argument.name)) if isinstance(t, torch.Tensor))
