"""Whether a function draws from the global generators of NumPy and Python, which to JAX are no argument of it."""

from __future__ import annotations

import contextlib
import pickle
import random
import secrets
from collections.abc import Callable, Iterator

import numpy as np


def host_states() -> bytes:
    """The states of the two generators, which tell whether somebody drew numbers. Takes about 30 us."""
    return pickle.dumps((random.getstate(), np.random.get_state(legacy=False)))


@contextlib.contextmanager
def forked_host_generators() -> Iterator[None]:
    """What is drawn within is drawn again after it, as with `torch.random.fork_rng`."""
    before = host_states()
    try:
        yield
    finally:
        if host_states() != before:
            _set(before)


def _set(states: bytes) -> None:
    of_python, of_numpy = pickle.loads(states)
    random.setstate(of_python)
    np.random.set_state(of_numpy)


def draws_on_host(run: Callable[[], object]) -> bool:
    """Whether a run that has changed the generators does so again, in a way that follows from their states.

    It does not if it seeds them itself, initialised something, or if it is another thread that draws.
    """
    seed, other = secrets.randbits(32), secrets.randbits(32)
    first = _state_after(run, seed)
    return first is not None and first == _state_after(run, seed) != _state_after(run, other)


def _state_after(run: Callable[[], object], seed: int) -> bytes | None:
    random.seed(seed)
    np.random.seed(seed)
    before = host_states()
    run()
    after = host_states()
    return None if after == before else after


def told_of_host(name: str) -> str:
    """What is said of a function that draws from them."""
    return (
        f"{name} draws random numbers from a global generator of NumPy or Python (`numpy.random`, `random`). To JAX it "
        "is a pure function: equal calls under `jax.jit` may become one, with the same numbers in each place. Draw "
        "with torch (`torch.rand`), wrap the function with `rng=True` and pass a JAX key first; or pass the numbers as "
        "an argument."
    )
