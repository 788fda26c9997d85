"""Whether the forwards of a function are recorded on windows: what its runs have shown."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping, Sequence

import torch

from .kept_graph import KeptGraph
from .protocol import DifferentiatedFunction
from .recording import Recording
from .saved_tensors import SavedTensors
from .windows import MOST_BYTES, Windows, WindowsOnCopies, can_make_windows

_MOST_MISSES = 3  # of a function that does different things in different calls


class WindowPolicy:
    """What each forward of one function is recorded on.

    The first forward is recorded on operands, with hooks. If all that it saves of them shares their storages and
    versions, the next is recorded on copies, without hooks. If its backward leaves nothing that refers to the copies,
    what referred to them at the end of the forward was the graph alone; that graph must have the nodes of the one with
    hooks. From then on forwards are recorded on windows: where as many nodes have been made and the same refers to
    windows at the end, nothing has escaped. Forwards 1, 2, 4, 8, ... have hooks again, because a function may do
    different things in different calls.
    """

    def __init__(self, function: DifferentiatedFunction) -> None:
        self._function = function
        checks = function.decisions.lending is not None
        is_large = sum(leaf.nbytes for leaf in function.operands) > MOST_BYTES
        self._is_refused = checks or is_large or not can_make_windows or function.lending is None
        self._runs = itertools.count(1)
        self._nbytes: Mapping[torch.device, int] | None = None  # of the last graph with hooks that was looked at
        self._names: tuple[str, ...] = ()  # of its nodes
        self._at_end: tuple[int, bytes] | None = None  # of a forward from which nothing has escaped
        self._misses = 0  # forwards at whose end something else referred to windows
        self._copies: weakref.ref[WindowsOnCopies] | None = None  # that wait for a backward

    def refuse(self) -> None:
        """Record with hooks from now on."""
        self._is_refused = True

    def note(self, recording: Recording) -> None:
        """Note a recording with hooks."""
        saved = recording.graph.saved
        if isinstance(saved, SavedTensors) and saved.is_as_lent and recording.reason_not_kept is None:
            self._nbytes, self._names = recording.graph.nbytes(), recording.graph.names()
        else:
            self.refuse()

    def windows(self, x: Sequence[torch.Tensor]) -> Windows | None:
        """What a forward is to be recorded on; None for hooks."""
        run = next(self._runs)
        if self._is_refused or self._nbytes is None or run & (run - 1) == 0 or x[0].device.type != "cpu":
            return None
        try:
            return self._made(x, self._nbytes)
        except (BufferError, RuntimeError):  # a dtype that torch's DLPack lacks
            self.refuse()
            return None

    def _made(self, x: Sequence[torch.Tensor], nbytes: Mapping[torch.device, int]) -> Windows | None:
        if self._at_end is not None:
            return Windows(x, self._function.ins, nbytes)
        if self._copies is not None and self._copies() is not None:
            return None
        copies = WindowsOnCopies(x, self._function.ins, nbytes)
        self._copies = weakref.ref(copies)
        return copies

    def may_have_escaped(self, graph: KeptGraph, windows: Windows) -> bool:
        """Whether more than the graph may refer to windows at the end of a forward. Such a graph is not kept."""
        if isinstance(windows, WindowsOnCopies):
            is_usual = graph.names() == self._names
        else:
            is_usual = windows.at_end == self._at_end
        if is_usual:
            return False
        self._misses += 1
        if self._misses == _MOST_MISSES:
            self.refuse()
        return True

    def end(self, windows: Windows, x: Sequence[torch.Tensor], *, is_usual: bool = True) -> None:
        """Look at what is left of windows after their graph is gone, in a call with the operands `x`."""
        is_clean = False
        try:
            is_clean = windows.let_go(x, self._function.lending)
        finally:
            if not is_clean:
                self.refuse()
        if is_clean and is_usual and isinstance(windows, WindowsOnCopies):
            self._at_end = windows.at_end
