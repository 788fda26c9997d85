"""The warning of `torch.func.vmap` about operations without a batching rule."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

_silenced: list[None] = []  # one for each batch that runs, on all threads


def silent_loops() -> AbstractContextManager[None]:
    """Within, `torch.func.vmap` does not warn that it runs an operation once per example.

    The warning (`warnFallback` in aten/src/ATen/functorch/BatchedFallback.cpp) is about torch's batching rules, which
    mean nothing to users of `jax.vmap`; where warnings are errors, it makes a batch fail that works. The switch holds
    for all threads. Torch has no function that reads it, so afterwards it is on, which is the default.
    """
    return _SILENT_LOOPS


class _SilentLoops:
    """The context of `silent_loops`. A generator would take as long as a small operation."""

    def __enter__(self) -> None:
        _silenced.append(None)
        _set_loop_warnings()

    def __exit__(self, *_: object) -> None:
        _silenced.pop()
        _set_loop_warnings()


_SILENT_LOOPS = _SilentLoops()


def _set_loop_warnings() -> None:
    """Set the switch according to `_silenced`.

    There is no lock, because a signal handler that interrupts this would wait for it. Each thread checks again after it
    has set the switch, so the last one leaves it right.
    """
    while True:
        is_on = not _silenced
        torch._C._functorch._set_vmap_fallback_warning_enabled(is_on)  # type: ignore[attr-defined]
        if is_on is (not _silenced):
            return
