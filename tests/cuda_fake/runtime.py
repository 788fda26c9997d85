"""What tests ask of the fake CUDA runtime (`runtime.c`): its log, and what it should refuse."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import NamedTuple

import torch

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
LAUNCH_FAILURE = 719  # cudaErrorLaunchFailure: any error that is not about memory
GLOBAL, OF_THREAD, RELAXED = range(3)  # cudaStreamCaptureMode
MEMORY = 1 << 33  # bytes of each device
WAITS = frozenset(
    {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaMemset"}
)
LAUNCHES = frozenset({"cudaLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync", "cudaMemcpyPeerAsync"})


class _Record(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        *((name, ctypes.c_uint64) for name in ("stream", "event", "recorded_on", "size", "thread")),
        ("device", ctypes.c_int32),
        ("error", ctypes.c_int32),
    )


class Call(NamedTuple):
    """A call of the runtime."""

    name: str
    stream: int
    event: int
    recorded_on: int  # the stream that the event of a `cudaStreamWaitEvent` was recorded on
    size: int
    thread: int  # as `threading.get_native_id()`
    device: int
    error: int


def library() -> ctypes.CDLL | None:
    """The fake runtime, if torch has loaded it."""
    with contextlib.suppress(OSError, AttributeError):
        loaded = ctypes.CDLL("libcudart.so.13")
        loaded.fake_log_take.restype = ctypes.c_size_t
        loaded.fake_log_take.argtypes = ctypes.POINTER(_Record), ctypes.c_size_t
        loaded.fake_memory.argtypes = (ctypes.c_size_t,)
        loaded.cudaStreamBeginCapture.argtypes = ctypes.c_void_p, ctypes.c_int
        loaded.cudaStreamEndCapture.argtypes = ctypes.c_void_p, ctypes.c_void_p
        loaded.cudaThreadExchangeStreamCaptureMode.argtypes = (ctypes.POINTER(ctypes.c_int),)
        return loaded
    return None


class Log(tuple[Call, ...]):
    """Calls in their order."""

    def of(self, *names: str) -> Log:
        """Those of some functions."""
        return Log(call for call in self if call.name in names)

    def names(self) -> list[str]:
        """The name of each."""
        return [call.name for call in self]

    def joins(self) -> list[tuple[int, int]]:
        """Which stream waits for which, in order."""
        return [(call.stream, call.recorded_on) for call in self.of("cudaStreamWaitEvent")]

    def launches(self) -> Log:
        """Kernels and copies that are enqueued."""
        return self.of(*LAUNCHES)

    def waits(self) -> list[str]:
        """What makes the host wait for a device."""
        return self.of(*WAITS).names()


def take() -> Log:
    """The calls since the last time."""
    fake, found = library(), []
    assert fake is not None
    block = (_Record * 256)()
    while count := fake.fake_log_take(block, len(block)):
        found += [Call(r.name.decode(), *(getattr(r, name) for name in Call._fields[1:])) for r in block[:count]]
    return Log(found)


@contextlib.contextmanager
def failing(name: str, *, after: int = 0, times: int = 1, error: int = LAUNCH_FAILURE) -> Iterator[None]:
    """Within, `after` calls of a function succeed and then `times` calls fail. They must all have failed at the end."""
    fake = library()
    assert fake.fake_fail(name.encode(), after, times, error)
    try:
        yield
    finally:
        left = fake.fake_fail_no_more()
    assert left == 0, f"{name} was not called as often as it should have failed"


@contextlib.contextmanager
def little_memory(size: int) -> Iterator[None]:
    """Within, a device has `size` bytes more than it has given away."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    library().fake_memory(total - free + size)
    try:
        yield
    finally:
        library().fake_memory(total)


@contextlib.contextmanager
def capturing(stream: int, mode: int = OF_THREAD) -> Iterator[None]:
    """Within, a stream is captured by this thread."""
    assert library().cudaStreamBeginCapture(stream, mode) == 0
    try:
        yield
    finally:
        library().cudaStreamEndCapture(stream, None)
        library().cudaGetLastError()  # an invalid capture, which the test has seen already


def compares_as(same: bool) -> None:
    """What kernels find out from now on that compare the memory of operands (they do nothing)."""
    library().fake_flags(int(same))
