"""Torch's warning that `torch.func.vmap` loops."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.overrides
import torch.utils._pytree

_silenced: list[None] = []  # one for each batch that runs, on all threads


@contextlib.contextmanager
def silent_loops() -> Iterator[None]:
    """Within, `torch.func.vmap` does not warn where it loops over the examples of an operation.

    Users of `jax.vmap` are told of torch's batching rules otherwise, and where warnings are errors, a batch that works
    fails. The switch is one for all threads. Torch does not tell its state: afterwards it is on, as it is by default.
    """
    _silenced.append(None)
    try:
        _set_loop_warnings()
        yield
    finally:
        _silenced.pop()
        _set_loop_warnings()


def _set_loop_warnings() -> None:
    """Switch the warnings to what is wanted. Without a lock, which a signal handler in here could wait for.

    Whoever sets the switch looks again, so that it is right after the last one.
    """
    while True:
        is_on = not _silenced
        torch._C._functorch._set_vmap_fallback_warning_enabled(is_on)  # type: ignore[attr-defined]
        if is_on is (not _silenced):
            return
