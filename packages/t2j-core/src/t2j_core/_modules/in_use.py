"""Whether results refer to a module, so that their backward may run its code once more."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable


class ModuleUse:
    """How modules are used in a context; see `modules_in_use`."""

    def __init__(self, *, lasts: bool) -> None:
        self.lasts = lasts  # until the end of the context
        self.is_kept: bool = False  # results refer to a module, whose code their backward may run
        self._until: contextlib.ExitStack | None = None

    def keep(self, take_back: Callable[[], None]) -> None:
        """Note that results refer to a module, which keeps its variables for as long as the context allows."""
        self.is_kept = True
        if not self.lasts:
            take_back()
            return
        if self._until is None:
            self._until = contextlib.ExitStack()
        self._until.callback(take_back)

    def end(self) -> None:
        """Take back what results have referred to in the context."""
        if self._until is not None:
            self._until.close()


class _Context(threading.local):
    use: ModuleUse | None = None


_context = _Context()


def current_use() -> ModuleUse | None:
    """The use of the innermost `modules_in_use` of this thread."""
    return _context.use


class _Watch:
    """The context of `modules_in_use`. A generator would take as long as a small operation."""

    def __init__(self, *, until_the_end: bool) -> None:
        self._until_the_end = until_the_end

    def __enter__(self) -> ModuleUse:
        self._outer = _context.use
        # Nested: a derivative of a derivative, or a signal handler that differentiates during a recorded forward.
        if self._outer is not None and (self._outer.lasts or not self._until_the_end):
            self._use = self._outer
        else:
            self._use = _context.use = ModuleUse(lasts=self._until_the_end)
        return self._use

    def __exit__(self, *_: object) -> None:
        _context.use = self._outer
        if self._use is not self._outer:
            self._use.end()


def modules_in_use(*, until_the_end: bool) -> _Watch:
    """Watch the modules that are called within. Those that results refer to may keep their variables `until_the_end`.

    A backward may run code of a module once more (`torch.utils.checkpoint` does), and must find the variables there.
    """
    return _Watch(until_the_end=until_the_end)
