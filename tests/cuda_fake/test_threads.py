"""Calls on several threads: those of Python, and those of XLA, which Python does not know."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import torch
from t2j_core.testing import assert_nothing_escaped, counters

from . import runtime
from .executables import EXECUTE, STREAM, device_memory, executable, ones

X = ones(6)


def in_threads(run, count):
    """Run `run(k)` on threads, all at once."""
    barrier, errors = threading.Barrier(count), []

    def body(k):
        barrier.wait()
        try:
            run(k)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_threads_on_two_devices_at_once_have_each_their_own_stream():
    def where(t):
        return torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream, t.device.index

    seen = {}

    def function(t):
        before = where(t)
        y = t.clone()  # releases the GIL
        seen.setdefault(threading.get_native_id(), set()).update((before, where(t)))
        return (y,)

    call, threads = executable(function, [X], [X]), {}

    def run(k):
        threads[threading.get_native_id()] = k
        x = device_memory(np.full(6, k, np.float32))
        for _ in range(50):
            (result,) = call([x], stream=STREAM + 16 * k, device=k % 2)
            assert (result == k).all()

    in_threads(run, 4)
    for thread, k in threads.items():
        assert seen[thread] == {(k % 2, STREAM + 16 * k, k % 2)}
    log = runtime.take()
    for thread, k in threads.items():
        of_thread = runtime.Log(call for call in log if call.thread == thread)
        assert of_thread.joins() == 50 * [(STREAM + 16 * k, 0), (0, STREAM + 16 * k)]
        assert {call.device for call in of_thread.launches()} == {k % 2}
    assert_nothing_escaped()


# --- threads that Python does not know -------------------------------------------------------------------------------

_pthreads = ctypes.CDLL(None)
_pthreads.pthread_create.argtypes = (ctypes.c_void_p,) * 4
_pthreads.pthread_join.argtypes = ctypes.c_void_p, ctypes.c_void_p


def in_raw_threads(call, count):
    """Call once on each of several threads, all at once, which begin in the handler and end after it."""
    results = [device_memory(np.zeros_like(X)) for _ in range(count)]
    frames = [call.frame([X], [result], device=k % 2) for k, result in enumerate(results)]
    threads = [ctypes.c_void_p() for _ in frames]
    for thread, frame in zip(threads, frames, strict=True):
        assert _pthreads.pthread_create(ctypes.byref(thread), None, EXECUTE, frame.address) == 0
    for thread, frame in zip(threads, frames, strict=True):
        error = ctypes.c_void_p()
        assert _pthreads.pthread_join(thread, ctypes.byref(error)) == 0
        frame.finish(error.value)
    return results


def test_threads_of_xla_that_begin_and_end():
    seen = []
    call = executable(lambda t: (t.clone(), seen.append(threading.get_native_id()))[:1], [X], [X])
    for _ in range(3):
        for result in in_raw_threads(call, 8):
            assert (result == 1).all()
    assert len(seen) == 24
    assert set(runtime.take().joins()) == {(STREAM, 0), (0, STREAM)}
    assert_nothing_escaped()


def test_a_thread_of_xla_keeps_its_python_state_between_calls():
    local, seen = threading.local(), []

    def function(t):
        local.calls = getattr(local, "calls", 0) + 1
        seen.append(local.calls)
        return (t.clone(),)

    call = executable(function, [X], [X])
    frames = [call.frame([X], [device_memory(X)]) for _ in range(3)]

    def calls_from_c(_):
        for frame in frames:
            frame.finish(_raw(frame.address))

    # A thread of C, which calls the handler three times: `pthread_create` takes a function of ctypes for that.
    body = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(calls_from_c)
    thread = ctypes.c_void_p()
    address = ctypes.cast(body, ctypes.c_void_p)
    assert _pthreads.pthread_create(ctypes.byref(thread), None, address, None) == 0
    _pthreads.pthread_join(thread, None)
    assert seen == [1, 2, 3]


_raw = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(EXECUTE)


def test_executables_that_xla_deletes_on_its_threads():
    before = counters()["live_sites"] if "live_sites" in counters() else None
    call = executable(lambda t: (t.clone(),), [X], [X])
    in_raw_threads(call, 2)
    in_threads(lambda k: k or call.close(), 1)
    assert counters().get("live_sites") == before


_ENDS = """
from cuda_fake.test_threads import X, in_raw_threads
from cuda_fake.executables import executable
import torch
call = executable(lambda t: (t.clone(),), [X], [X])
torch.cuda.init()
for _ in range(4):
    in_raw_threads(call, 8)
print("done")
"""


def test_python_ends_after_threads_of_xla_have_ended():
    folder = str(Path(__file__).parents[1])
    ended = subprocess.run([sys.executable, "-c", _ENDS], cwd=folder, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
