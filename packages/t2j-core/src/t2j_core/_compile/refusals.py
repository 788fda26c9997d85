"""What is not compiled, and how users learn of it."""

from __future__ import annotations

from .._base.errors import PerformanceWarning, warn
from .._base.frames import users_place


class NotCompiledError(Exception):
    """A function that cannot be compiled, and why."""


class InTurnError(NotCompiledError):
    """A batch whose examples run one after another, so that a graph of it would have the operations of all."""

    def __init__(self) -> None:
        super().__init__("the examples of a batch run one after another")


class Refusals:
    """What was refused in one trace. The function may catch the exception, and take a course that is not its own."""

    def __init__(self) -> None:
        self._first: NotCompiledError | None = None
        self.is_running = False
        """Whether the function runs. The tracer itself saves and restores the state of torch's generators."""
        self.sets_state = False
        """Whether the state of torch's generators was set, as by `torch.random.fork_rng`."""

    def note_state(self) -> None:
        """The state of torch's generators is set, which matters if numbers are drawn."""
        self.sets_state |= self.is_running

    def new(self, reason: str) -> NotCompiledError:
        """The exception to raise where something is refused."""
        error = NotCompiledError(reason)
        self._first = self._first or error
        return error

    def raise_first(self) -> None:
        """Raise what was refused first, if anything was."""
        if self._first is not None:
            raise self._first


def reason_of(error: Exception) -> str:
    """What went wrong as a function was traced or compiled, and where in the user's code."""
    try:
        text = str(error).strip().partition("\n")[0][:200]
    except Exception:  # the `__str__` of a user's class raises
        text = ""
    what = text if isinstance(error, NotCompiledError) else f"{type(error).__name__}: {text}"
    place = users_place(error)
    return what if place is None else f"{what}, in line {place.line} of {place.filename}: `{place.text}`"


def warn_not_compiled(name: str, reason: str, noted: set[str]) -> None:
    """Warn, once for each wrapped function, that it runs as without `compile=True`."""
    if "not compiled" not in noted:
        noted.add("not compiled")
        warn(f"{name} cannot be compiled ({reason}). It runs as without `compile=True`.", PerformanceWarning)
