"""Functions compiled by `torch.compile`, inside the modes that derivatives and batches enter."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from t2j_core.extend import turns


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Within, functions compiled by `torch.compile` run as they are written, so that a mode sees their operations.

    The compiler would take the mode for a part of the function: it compiles once more, and where it cannot compile what
    the mode does, results were wrong (torch 2.13). `torch.compiler.set_stance` holds for all threads, hence the lock.
    """
    if "torch._dynamo" not in sys.modules:  # nothing in this process is compiled; `set_stance` would import for seconds
        yield
        return
    with turns, torch.compiler.set_stance("force_eager"):
        yield
