"""Captures of CUDA graphs: whether one is going on, and the memory that torch's operations get in it."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator

import torch

PoolId = tuple[int, int]


def is_capturing(device: torch.device) -> bool:
    """Whether the current stream of a GPU is captured in a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Pool:
    """Memory of one device that torch uses in some captures, and for nothing else until this object dies.

    A graph refers to the addresses that it was captured with. Freed memory of a capture is used again only in later
    captures of the same pool.
    """

    def __init__(self, device: int) -> None:
        self._device = device
        self._id: PoolId = torch.cuda.graph_pool_handle()
        self._exists = False

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Within, what is allocated for the current stream comes from the pool, on threads of autograd too.

        Workspaces of cuBLAS are made anew: those that exist belong to other work, and those of the capture to the pool.
        """
        torch._C._cuda_clearCublasWorkspaces()
        torch._C._cuda_beginAllocateCurrentStreamToPool(self._device, self._id)
        try:
            yield
        finally:
            torch._C._cuda_clearCublasWorkspaces()
            _end(self._device, self._id)
            if self._exists:  # each beginning counts as one more user
                torch._C._cuda_releasePool(self._device, self._id)
            else:
                self._exists = True
                weakref.finalize(self, torch._C._cuda_releasePool, self._device, self._id).atexit = False


_end: Callable[[int, PoolId], None] = getattr(  # renamed in torch 2.8
    torch._C, "_cuda_endAllocateToPool", getattr(torch._C, "_cuda_endAllocateCurrentStreamToPool", None)
)  # type: ignore[assignment]  # torch for the CPU has neither, and captures nothing
