"""Windows: what a forward is recorded on without hooks.

A window is a tensor that shows the memory of one call at a time (`native/windows.h` of t2j-core). A graph that is
recorded on windows saves them and views of them. They are closed when the forward ends, so that the graph refers to no
memory of XLA, and its backward opens them on its own operands, whose values JAX has kept for it.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from t2j_core import extend
from t2j_core.extend import Lending, collect_garbage, movable_copy, raise_escaped

from .. import _compat

MOST_BYTES = 1 << 28
"""The most that the operands of a call may take. Larger ones take so long that hooks do not matter."""

_OPEN, _CLOSED = 0, 1  # versions: torch refuses the backward of a graph that has saved another version
_version: Callable[[torch.Tensor], int] = operator.attrgetter("_version")

can_make_windows = _compat.can_set_versions and _compat.can_count_nodes and extend.has_windows()


class Windows:
    """The windows of one graph, one for each operand, open on `x`."""

    _unused = b""  # `owners` while nothing else refers to them

    def __init__(self, x: Sequence[torch.Tensor], ins: Sequence[int], nbytes: Mapping[torch.device, int]) -> None:
        self._windows = extend.Windows(list(x))
        self.tensors: tuple[torch.Tensor, ...] = tuple(self._windows.tensors)
        self._nbytes = nbytes
        self.at_end: tuple[int, bytes] = (0, b"")  # how many nodes the forward has made, and `owners` at its end
        for i in ins:
            self.tensors[i].requires_grad_()
        self._unused = self.owners()

    def nbytes(self, _device: torch.device) -> Mapping[torch.device, int]:
        """What the graph weighs, as in `SavedTensors`."""
        return self._nbytes

    def owners(self) -> bytes:
        """What refers to the windows and to their memory, to be compared with that of another call."""
        return self._windows.owners()

    def changed(self) -> list[int]:
        """Those that the function has changed in place."""
        versions = list(map(_version, self.tensors))
        return [i for i, version in enumerate(versions) if version != _OPEN] if any(versions) else []

    def close(self) -> None:
        """Show no memory, and let torch refuse to run what a function has kept of the graph."""
        self._windows.close(_blank())
        _compat.set_versions(self.tensors, _CLOSED)

    def lent(self, x: Sequence[torch.Tensor]) -> contextlib.AbstractContextManager[object]:
        """Show the operands, for a run of the backward."""
        self._windows.open(list(x))
        _compat.set_versions(self.tensors, _OPEN)
        return contextlib.closing(self)

    def apart(self, results: list[Any]) -> list[Any]:
        """`results`, which outlive the run, with copies of those that share memory with a window."""
        for i in self._windows.sharing(results):
            results[i] = results[i].detach().clone()
        return results

    def let_go(self, x: Sequence[torch.Tensor], lending: Lending | None) -> bool:
        """Whether nothing refers to the windows once their graph is gone, in a call with the operands `x`.

        What has escaped gets memory of its own. It may be but a part of the graph, so there is no warning: if it is a
        tensor, the next call warns, which has hooks. Raises `TensorEscapeError` for what has no other memory.
        """
        if self.owners() == self._unused:
            return True
        collect_garbage()
        self._windows.open(list(x))
        try:
            for i in self._escaped():
                if lending is not None:
                    self._let_go_of(i, lending)
        finally:
            self._windows.close(_blank())
        return False

    def _let_go_of(self, i: int, lending: Lending) -> None:
        if not self._windows.has_own(i):
            if not self._has_memory(i):  # the function has given the tensor other memory
                return
            raise_escaped(lending)
        self._windows.move(i, movable_copy(True, lending, i, False, self.tensors[i].untyped_storage()))
        _compat.set_versions([self.tensors[i]], _OPEN)

    def _has_memory(self, i: int) -> bool:
        """Whether anything refers to the memory of a window."""
        return bool(memoryview(self.owners()).cast("Q")[4 * i + 2])

    def _escaped(self) -> list[int]:
        now, before = self.owners(), self._unused
        size = len(now) // len(self.tensors)
        places = ((i, slice(i * size, (i + 1) * size)) for i in range(len(self.tensors)))
        return [i for i, place in places if now[place] != before[place]]

    def move_all(self, x: Sequence[torch.Tensor]) -> None:
        """Give memory of its own to whatever an exception has left."""
        for i, t in enumerate(x):
            self._windows.move(i, t.detach().clone().untyped_storage())
        _compat.set_versions(self.tensors, _OPEN)


class WindowsOnCopies(Windows):
    """Windows that stay open, on copies, where it is not known yet whether anything but the graph refers to them."""

    def __init__(self, x: Sequence[torch.Tensor], ins: Sequence[int], nbytes: Mapping[torch.device, int]) -> None:
        self._copies = [t.clone() for t in x]
        super().__init__(self._copies, ins, nbytes)

    def close(self) -> None:
        """Let torch refuse to run what a function has kept of the graph."""
        _compat.set_versions(self.tensors, _CLOSED)

    def lent(self, x: Sequence[torch.Tensor]) -> contextlib.AbstractContextManager[object]:
        """The copies have the values of the operands."""
        return super().lent(self._copies)

    def __del__(self) -> None:
        if self._unused and self.owners() != self._unused:
            self.move_all(self._copies)


@functools.cache
def _blank() -> int:
    """The address of zeros that are as large as the largest window. They take memory only where they are read."""
    memory = mmap.mmap(-1, MOST_BYTES)
    _blanks.append(memory)
    return torch.frombuffer(memory, dtype=torch.uint8).data_ptr()


_blanks: list[mmap.mmap] = []
