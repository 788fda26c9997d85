"""`CapturedTarget`: what a call site runs whose calls XLA may capture as a part of a CUDA graph.

XLA puts calls with `command_buffer=True` between kernels of its own into a "command buffer", which is a CUDA graph. It
captures the graph when the memory of a program is new to it: Python and torch run then, and enqueue work. All other
executions launch the graph again. It uses the addresses of the capture, so all memory of the graph has to stay.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from .. import _compat
from .._base.dtypes import ROWS
from .._base.errors import CommandBufferError, T2jError, describe
from .._infer.failures import first_line
from .call_site import BufferSpec
from .comparing import has_same_bits
from .lending import Handover, Lending
from .streams import enter_unordered, leave, order_in, restore
from .used_memory import Memory, Rehearsal
from .writes import operand_written

_CUDA = torch.device("cuda")
_EXPECTED = (
    "a function that only enqueues work on the GPU, with `command_buffer=True`: no `.item()`, `.cpu()` or `print` of "
    "values, no shapes that depend on values, nothing kept"
)


class CapturedTarget:
    """A target of one call site. XLA may run a function at several sites at the same time, so each has own memory."""

    def __init__(
        self, run: Callable[..., Any], lending: Lending, operands: Sequence[BufferSpec], buffers: Sequence[BufferSpec]
    ) -> None:
        self._run = run
        self._lending = lending
        self._operands = operands
        self._buffers = buffers  # for results, if it takes them
        self._pools: dict[int, _compat.Pool] = {}
        self._outside: dict[int, torch.UntypedStorage] = {}
        self._used: dict[int, dict[int, torch.UntypedStorage | StorageWeakRef]] = {}
        """What the captured call of a thread, by its number, may need in `_outside`."""

    def warm_up(self, device: torch.device) -> tuple[int, ...]:
        """Run once on zeros, outside of any capture; returns the operands that it writes into, which get copied.

        A capture has no values to check, so this is checked here.
        """
        arguments = [_zeros(spec, device) for spec in (*self._operands, *self._buffers)]
        memory = Rehearsal(arguments)
        try:
            self._rehearse(arguments, memory)
            written = self._written(arguments, memory)
        finally:
            memory.put_back()
        del arguments
        if memory.is_kept():
            raise self._error("keeps a tensor of the call. Each execution would change it")
        for i in written:
            operand_written(self._lending, i, is_private=True, has_lent=False)
        return written

    def _rehearse(self, arguments: Sequence[torch.Tensor], memory: Rehearsal) -> None:
        try:
            with memory:
                self._run(*arguments)
        except (torch.OutOfMemoryError, T2jError):
            raise
        except Exception as error:
            raise self._error(
                f"fails on zeros, on which it runs once before: {first_line(error)}",
                expected="a function that also runs on arguments of zeros, with `command_buffer=True`",
            ) from error

    def _written(self, arguments: Sequence[torch.Tensor], memory: Rehearsal) -> tuple[int, ...]:
        pairs = enumerate(zip(arguments, self._operands, strict=False))
        lent = [(i, t) for i, (t, spec) in pairs if spec.handover == Handover.BORROW]
        return tuple(
            i
            for i, t in lent
            if t._version or memory.has_written(t) or not has_same_bits(t, torch.zeros_like(t).untyped_storage())
        )

    def enter(self, pointer: int, device: int) -> contextlib.ExitStack:
        """As `streams.enter`. In a capture nothing is ordered by events, and torch allocates in the site's own pool."""
        entered = enter_unordered(pointer, device)
        with contextlib.ExitStack() as stack:
            stack.callback(restore, entered)
            if _compat.is_capturing(_CUDA):
                stack.enter_context(self._pool(device).in_use())
                stack.callback(self.hold_outside)
            else:
                order_in(entered)
                stack.pop_all()
                stack.callback(leave, entered)
            return stack.pop_all()

    def _pool(self, device: int) -> _compat.Pool:
        if device not in self._pools:
            self._pools[device] = _compat.Pool(device)
        return self._pools[device]

    def __call__(self, *tensors: torch.Tensor) -> Any:
        if not _compat.is_capturing(_CUDA):
            return self._run(*tensors)
        with Memory(tensors) as memory:
            try:
                results = self._run(*tensors)
            except Exception as error:
                if not _is_of_capture(error):
                    raise
                raise self._error(f"cannot be captured: {first_line(error)}") from error
        memory.note_used(results)
        self._used[threading.get_ident()] = {
            key: storage if storage.device.type == "cpu" else StorageWeakRef(storage)
            for key, storage in memory.outside.items()
        }
        return results

    def hold_outside(self) -> None:
        """Keep the memory that was there before a captured call, once its tensors are gone.

        What is gone with them was made where `Memory` does not look, as by compiled code, in the site's own pool.
        Memory of the host is in no pool, and the graph may copy from it.
        """
        for key, used in self._used.pop(threading.get_ident(), {}).items():
            storage = torch.UntypedStorage._new_with_weak_ptr(used.cdata) if isinstance(used, StorageWeakRef) else used
            if storage is not None:
                self._outside[key] = storage

    def _error(self, what: str, expected: str = _EXPECTED) -> CommandBufferError:
        return CommandBufferError(
            describe(
                f"{self._lending.name} {what}.",
                expected=expected,
                remedy="Leave that out, or wrap the function without `command_buffer=True`.",
            )
        )


_DTYPES = {(row.code, row.bits): row.torch for row in ROWS}


def _zeros(spec: BufferSpec, device: torch.device) -> torch.Tensor:
    return torch.zeros(spec.shape, dtype=_DTYPES[spec.code, spec.bits], device=device)


def _is_of_capture(error: Exception) -> bool:
    """Whether an error says what a capture forbids; `cudaErrorStreamCapture...` are 900 to 907."""
    return "captur" in first_line(error) or 900 <= getattr(error, "error_code", 0) <= 907
