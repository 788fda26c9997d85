"""`Memory` and `Rehearsal`: which memory the operations of a captured call make, use and write into."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.utils._pytree as torch_tree
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef

from .. import _compat
from .._base.garbage import collect
from .comparing import bytes_of


class Memory(_compat.DispatchMode):
    """Notes which memory operations make, and which they use that was there before, other than that of `arguments`."""

    def __init__(self, arguments: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.outside: dict[int, torch.UntypedStorage] = {}
        """The memory of other tensors, such as those in a closure, by the address of the object."""
        self._made: dict[int, StorageWeakRef] = {}
        self.note_made(arguments)

    def note_made(self, tensors: Iterable[torch.Tensor]) -> None:
        """Take the memory of tensors for new."""
        for storage in map(_compat.storage_of, tensors):
            self._made[storage._cdata] = StorageWeakRef(storage)

    def is_kept(self) -> bool:
        """Whether something still refers to the new memory, also after garbage was collected."""
        self.outside.clear()  # may refer to new memory, as an array of NumPy over it does
        made = self._made.values()
        if not all(memory.expired() for memory in made):
            collect()
        return not all(memory.expired() for memory in made)

    def is_new(self, storage: torch.UntypedStorage) -> bool:
        """Whether memory is that of an argument, or was made by an operation."""
        return storage._cdata in self._made

    def note_used(self, tree: object) -> None:
        """Note the memory of tensors, if it was there before."""
        self.outside.update({storage._cdata: storage for storage in _storages(tree) if not self.is_new(storage)})

    def handle(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, and note its memory."""
        self.note_used((args, kwargs))
        results = self.operate(func, args, kwargs)
        self.note_made(t for t in _dense(results) if _compat.storage_of(t)._cdata not in self.outside)
        return results


class Rehearsal(Memory):
    """Also notes what operations write into. Memory that was there before gets its old contents back."""

    def __init__(self, arguments: Iterable[torch.Tensor]) -> None:
        super().__init__(arguments)
        self._written: set[int] = set()
        self._before: dict[int, tuple[torch.UntypedStorage, torch.Tensor]] = {}

    def has_written(self, tensor: torch.Tensor) -> bool:
        """Whether an operation wrote into the memory of a tensor, with the same values or others."""
        return _compat.storage_of(tensor)._cdata in self._written

    def put_back(self) -> None:
        """Undo what operations wrote into memory that was there before, such as running statistics in a closure."""
        for storage, contents in self._before.values():
            bytes_of(storage)[: len(contents)].copy_(contents)
        self._before.clear()

    def handle(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As in `Memory`."""
        for storage in _storages(_targets(func, args, kwargs)):
            self._written.add(storage._cdata)
            if not self.is_new(storage) and storage._cdata not in self._before:
                self._before[storage._cdata] = storage, bytes_of(storage).clone()
        return super().handle(func, args, kwargs)


_STATISTICS = {"running_mean", "running_var"}


def _targets(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes into. Of running statistics the schemas do not say so."""
    schema = getattr(func, "_schema", None)  # higher-order operators have none
    if schema is None:
        return []
    arguments = schema.arguments
    given = {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs
    names = {argument.name for argument in arguments if argument.alias_info and argument.alias_info.is_write}
    if given.get("training", True) and "backward" not in schema.name:
        names |= _STATISTICS
    return [value for name, value in given.items() if name in names]


def _dense(tree: object) -> list[torch.Tensor]:
    leaves = torch_tree.tree_leaves(tree)
    return [part for leaf in leaves if isinstance(leaf, torch.Tensor) for part in _parts(leaf)]


def _parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The dense tensors that a tensor consists of."""
    if tensor.layout == torch.strided:
        return (tensor,)
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return ()


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return list(map(_compat.storage_of, _dense(tree)))
