"""Functions in flight, and the garbage collector."""

from __future__ import annotations

import gc
import sys

import jax
import jax.numpy as jnp
import pytest
from t2j_core._run import in_flight
from t2j_core._run.orphans import Signatures


class Unfinished:
    """A result that is never ready. It asks a real array, because that is where jaxlib captures a traceback."""

    nbytes = 0

    def __init__(self, array):
        self.array = array

    def is_ready(self):
        self.array.is_ready()
        return False


class Wrapper:
    """In a cycle with its signatures, as many wrappers are: only the garbage collector frees it."""

    def __init__(self):
        self.signatures = Signatures()
        self.me = self


IN_FINALIZERS = [
    function.__code__
    for function in (
        *(Unfinished.is_ready, in_flight._is_ready, in_flight.release_finished),
        *(in_flight.release_from_finalizer, Signatures.__del__),
    )
]
_many = IN_FINALIZERS * 10_000  # references, so that the test fails instead of crashing


def asked(array, depth):
    """Capture a traceback of many frames. On Python 3.11 each may start the collector."""
    return asked(array, depth - 1) if depth else array.is_ready()


@pytest.fixture
def waiting():
    """A function in flight, for all finalizers that look; and an array."""
    array, threshold = jnp.ones(3), gc.get_threshold()
    entry = object(), Unfinished(array)
    in_flight._waiting.append(entry)
    yield array
    gc.enable()
    gc.set_threshold(*threshold)
    in_flight._waiting.remove(entry)


def test_a_wrapper_that_dies_inside_jaxlib_takes_no_references_from_others(waiting):
    before = [sys.getrefcount(code) for code in IN_FINALIZERS]
    for n in range(200):
        Wrapper()
        gc.set_threshold(1 + n % 30)
        asked(waiting, 20)
    gc.disable()
    jax.block_until_ready([waiting])  # jaxlib releases the tracebacks
    after = [sys.getrefcount(code) for code in IN_FINALIZERS]
    assert not any(new < old for old, new in zip(before, after, strict=True))
