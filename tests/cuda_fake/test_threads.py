"""Calls on several threads: those of Python, and those of XLA, which Python does not know."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from t2j_autodiff import torch2jax
from t2j_core import last_error
from t2j_core.testing import assert_nothing_escaped, counters

from . import runtime
from .executables import EXECUTE, STREAM, XlaError, device_memory, executable, ones
from .programs import Program

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


PROGRAMS = {
    "forward": lambda f: f,
    "batch": lambda f: jax.vmap(f),
    "gradient": lambda f: jax.value_and_grad(f),
    "batch of gradients": lambda f: jax.vmap(jax.grad(f)),
}


@pytest.mark.parametrize("residuals", ["auto", "recompute"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_calls_on_two_devices_may_wait_for_each_other(name, residuals):
    """Fault J: a collective inside a function waits for its partner, so no lock may be held meanwhile."""
    barrier, is_waiting = threading.Barrier(2, timeout=60), []

    def collective(t):
        if is_waiting:
            barrier.wait()
        return torch.exp(t).sum()

    x = jnp.ones((64, 256))
    program = Program(PROGRAMS[name](torch2jax(collective, residuals=residuals)), x)
    for device in range(2):
        program(x, device=device)
    is_waiting.append(True)
    in_threads(lambda k: program(x, stream=STREAM + 16 * k, device=k), 2)


# --- threads that Python does not know -------------------------------------------------------------------------------

_pthreads = ctypes.CDLL(None)
_pthreads.pthread_create.argtypes = (ctypes.c_void_p,) * 4
_pthreads.pthread_join.argtypes = ctypes.c_void_p, ctypes.c_void_p


def begun(function, argument):
    """A thread that runs a function of C, by their addresses."""
    thread = ctypes.c_void_p()
    assert _pthreads.pthread_create(ctypes.byref(thread), None, function, argument) == 0
    return thread


def ended(thread):
    """What its function has returned."""
    returned = ctypes.c_void_p()
    assert _pthreads.pthread_join(thread, ctypes.byref(returned)) == 0
    return returned.value


def in_raw_threads(call, count):
    """Call once on each of several threads, all at once, which begin in the handler and end after it."""
    results = [device_memory(np.zeros_like(X)) for _ in range(count)]
    frames = [call.frame([X], [result], device=k % 2) for k, result in enumerate(results)]
    threads = [begun(EXECUTE, frame.address) for frame in frames]
    for error, frame in zip([ended(thread) for thread in threads], frames, strict=True):
        frame.finish(error)
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

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    def three_calls(_):
        for frame in frames:
            frame.finish(_handler(frame.address))

    ended(begun(ctypes.cast(three_calls, ctypes.c_void_p), None))
    assert seen == [1, 2, 3]


_handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(EXECUTE)


def test_an_exception_on_a_thread_of_xla_is_that_of_the_call():
    def raises(t):
        raise KeyError("mine")

    call = executable(raises, [X], [X])
    for _ in range(2):
        with pytest.raises(XlaError, match="mine"):
            in_raw_threads(call, 2)
    assert isinstance(last_error(), KeyError)


def test_a_thread_of_xla_deletes_an_executable():
    before = counters()["live_sites"]
    call = executable(lambda t: (t.clone(),), [X], [X])
    assert counters()["live_sites"] == before + 1
    ended(begun(call.deleter, call.state))
    assert counters()["live_sites"] == before


_ENDS = """
import torch
from cuda_fake.test_threads import X, in_raw_threads
from cuda_fake.executables import executable
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
