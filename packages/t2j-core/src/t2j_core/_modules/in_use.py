"""Whether results refer to a module, so that their backward may run its code once more."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class ModuleUse:
    """How modules are used in a context; see `modules_in_use`."""

    def __init__(self, until: contextlib.ExitStack | None) -> None:
        self._until = until
        self.lasts = until is not None  # until the end of the context
        self.is_kept = False  # results refer to a module, whose code their backward may run

    def keep(self, take_back: Callable[[], None]) -> None:
        """Note that results refer to a module, which keeps its variables for as long as the context allows."""
        self.is_kept = True
        if self._until is None:
            take_back()
        else:
            self._until.callback(take_back)


class _Context(threading.local):
    use: ModuleUse | None = None


_context = _Context()


def current_use() -> ModuleUse | None:
    """The use of the innermost `modules_in_use` of this thread."""
    return _context.use


@contextlib.contextmanager
def modules_in_use(*, until_the_end: bool) -> Iterator[ModuleUse]:
    """Watch the modules that are called within. Those that results refer to may keep their variables `until_the_end`.

    A backward may run code of a module once more (`torch.utils.checkpoint` does), and must find the variables there.
    """
    outer = _context.use
    # Nested: a derivative of a derivative, or a signal handler that differentiates during a recorded forward.
    if outer is not None and (outer.lasts or not until_the_end):
        yield outer
        return
    with contextlib.ExitStack() as until:
        _context.use = ModuleUse(until if until_the_end else None)
        try:
            yield _context.use
        finally:
            _context.use = outer
