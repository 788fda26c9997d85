"""The extension: what XLA calls to run torch functions, from `native/`. Only `_lowering.native` imports it.

Every function is called with the GIL held, and may be called on any thread.
"""

from typing import Any

from ._lowering.hooks import Hooks

def setup(hooks: Hooks) -> None:
    """Hand over the Python objects that the call path uses. Called once, before the first call.

    Raises TypeError, and changes nothing, if a hook is missing, unknown or of the wrong kind.
    """

def hook_list() -> dict[str, tuple[str, int]]:
    """The hooks that `setup` takes: the kind of each, and the number of arguments if it is a callable."""

def learn_storage_layout(samples: tuple[tuple[Any, ...], ...]) -> bool:
    """Find out where this torch keeps the memory of tensors. False, and calls read none, if it is not found.

    A sample is (tensor, `tensor._cdata`, `storage._cdata`, `storage.data_ptr()`, uses of the storage).
    """

def exchange_memory(a: Any, b: Any) -> bool:
    """Exchange the memory of two storages of the same size. False if the layout is not known."""

def has_windows() -> bool:
    """Whether this torch has what windows need."""

class Windows:
    """Tensors that show the memory of one call at a time, and own none."""

    def __init__(self, tensors: list[Any]) -> None:
        """Open a window on each tensor."""

    @property
    def tensors(self) -> list[Any]:
        """The windows."""

    def open(self, tensors: list[Any]) -> None:
        """Show the memory of the tensor at the place of each window, which has its shape."""

    def close(self, blank: int) -> None:
        """Show the memory at an address, which is as large as any window and is never freed."""

    def owners(self) -> bytes:
        """How many refer to each window and to its memory, to be compared."""

    def sharing(self, tensors: list[Any]) -> list[int]:
        """The places of those tensors that share memory with a window. Some may be None."""

    def has_own(self, place: int) -> bool:
        """Whether a window has not been given other memory."""

    def move(self, place: int, storage: Any) -> bool:
        """Give what refers to the memory of a window that of a storage, for good. False if nothing does."""

def handlers() -> dict[str, Any]:
    """Capsules of the FFI handlers: `instantiate`, `cpu`, `cuda`, `rocm`, and `nothing`, which does nothing."""

def close_gate() -> None:
    """Refuse new calls and wait, without the GIL, for the running ones. For the end of the process."""

def after_fork() -> None:
    """Refuse calls from now on. For a forked child, in which XLA has no threads."""

def call_depth() -> int:
    """In how many nested calls of torch functions this thread is."""

def current_pair() -> tuple[int, int, int] | None:
    """The paired call that this thread is in: (execution, device, pair)."""

def counters() -> dict[str, int]:
    """What is alive: `live_sites`, `escaped_calls` (finished calls with lent memory), `calls_in_flight`."""

def abi_layout() -> dict[str, int]:
    """Sizes and offsets of the structs that the extension declares."""

def uses_exchange_api() -> bool:
    """Whether tensors go through torch's exchange table, not through capsules."""

def set_turn_patience(seconds: float) -> float:
    """How long a call of small tensors waits for another one, for tests. Returns what it was before."""

def set_newest_known_minor(minor: int) -> None:
    """Treat runtimes above this minor version of the FFI as unknown, for tests."""
