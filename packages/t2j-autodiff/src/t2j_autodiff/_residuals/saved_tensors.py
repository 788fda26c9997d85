"""What an autograd graph saves for its backward, without a reference to memory of XLA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from .. import _compat

_LEAST_BYTES = 4096  # what a graph takes at least
_WATCHED = 7  # the version of operands that are watched, to see what shares it


class _InOperand(NamedTuple):
    """A saved tensor that lies in the memory of an operand: the backward makes it again from that operand."""

    operand: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    is_conj: bool


class _Own(NamedTuple):
    """Any other saved tensor, and its version then."""

    tensor: torch.Tensor
    version: int


class SavedTensors:
    """The tensors that one graph saves: hooks for `torch.autograd.graph.saved_tensors_hooks`.

    The nodes of a graph refer to these hooks. So the hooks may not refer to the graph: Python's garbage collector does
    not look into the C++ nodes (https://github.com/pytorch/pytorch/issues/84711), and would never find such a cycle.
    """

    def __init__(self, x: Sequence[torch.Tensor], *, is_watched: bool = False) -> None:
        self._lent = {t.untyped_storage().data_ptr(): i for i, t in enumerate(x) if t.numel()}
        self._dtypes = [t.dtype for t in x]
        self._offsets = [t.storage_offset() for t in x]
        self.is_watched = is_watched and _compat.can_set_versions
        self.is_as_lent = self.is_watched
        """Whether what was saved in operands shares their versions, as views by autograd do."""
        self.operands: list[torch.Tensor] = []  # only while the forward or the backward runs
        self._storages: dict[int, tuple[torch.device, int]] = {}  # by storage of the other tensors

    def nbytes(self, device: torch.device) -> Mapping[torch.device, int]:
        """How many bytes they take on each device: on `device`, where the graph is, at least some."""
        sizes = {device: 0}
        for place, size in self._storages.values():
            sizes[place] = sizes.get(place, 0) + size
        return {place: max(size, _LEAST_BYTES) for place, size in sizes.items()}

    @contextlib.contextmanager
    def lent(self, x: Sequence[torch.Tensor]) -> Iterator[None]:
        """Give the operands for a run of the forward or the backward."""
        self.operands.extend(x)
        try:
            yield
        finally:
            self.operands.clear()

    @contextlib.contextmanager
    def watching(self, handles: Sequence[torch.Tensor], x: Sequence[torch.Tensor]) -> Iterator[None]:
        """Watch `handles`, which have the memory of `x` and, if they are watched, versions of their own."""
        if not self.is_watched:
            yield
            return
        _compat.set_versions(handles, _WATCHED)
        try:
            yield
        finally:
            note_writes(x, [i for i, t in enumerate(handles) if t._version != _WATCHED])

    def pack(self, t: torch.Tensor) -> _InOperand | _Own:
        """What the graph holds in place of a tensor."""
        if not t.numel():  # an empty operand has no memory to keep, but its tensor would count as kept
            t = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
        storage = t.untyped_storage()
        index = self._lent.get(storage.data_ptr())
        if index is None or t.dtype != self._dtypes[index]:
            if not _is_parameter(t):
                self._storages[storage._cdata] = t.device, storage.nbytes()
            # Detached: a result that its own node saves has that node as `grad_fn` here, another such cycle
            # (https://github.com/pytorch/pytorch/pull/189025).
            return _Own(t.detach(), t._version)
        self.is_as_lent &= t._version == _WATCHED
        offset = int(t.storage_offset() - self._offsets[index])
        return _InOperand(index, tuple(t.shape), t.stride(), offset, t.is_conj())

    def apart(self, grads: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """`grads`: those that share memory with an operand are views of the tensor that XLA has lent."""
        return grads

    def move_all(self, x: Sequence[torch.Tensor]) -> None:
        """The graph refers to no memory of XLA."""

    def unpack(self, saved: _InOperand | _Own) -> torch.Tensor:
        """The tensor, for the backward."""
        if isinstance(saved, _Own):
            return _unchanged(saved)
        base = self.operands[saved.operand]
        view = base.as_strided(saved.shape, saved.strides, base.storage_offset() + saved.offset)
        return view.conj() if saved.is_conj else view


def note_writes(x: Sequence[torch.Tensor], written: Sequence[int]) -> None:
    """Let the versions of operands tell that the function has written into them, by tensors with other versions."""
    for i in written:
        torch.autograd.graph.increment_version(x[i])


def _unchanged(saved: _Own) -> torch.Tensor:
    t = saved.tensor
    if t._version != saved.version:  # torch checks this only where a tensor is saved without hooks
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"a {t.dtype} of shape {tuple(t.shape)} is at version {t._version}, not {saved.version}. "
            "Clone it before the operation."
        )
    return t


def _is_parameter(t: torch.Tensor) -> bool:
    """Whether a saved tensor is one that the function refers to anyway, or a view of it."""
    base = t if t._base is None else t._base
    return base.is_leaf and base.requires_grad
