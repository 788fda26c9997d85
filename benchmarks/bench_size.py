"""The cost of a jitted `a + b`, from one float to 100 million: `python benchmarks/bench_size.py [--quick]`.

Every contestant adds the same float32 arrays. The timed call does nothing else.
"""

from __future__ import annotations

from _harness import Pace, Race, Report, Versus
from _script import main

# The harness comes first because it pins the threads before torch loads.
# isort: split
import jax
import numpy as np
import torch
from _contestants import (
    FLOOR,
    JNP,
    PEER,
    TORCH,
    TVM,
    buffer_callback,
    floor,
    identical,
    jitted,
    normal,
    peer,
    pure_callback,
    t2j,
    tensors,
    tvm_ffi,
)

Paces = dict[int, Pace]
FULL = {10**k: Pace(51) for k in range(6)} | {10**6: Pace(41), 10**7: Pace(21), 10**8: Pace(7)}
QUICK = {10**k: Pace(3, 0.002, 0.01) for k in (0, 3, 5, 6)}
QUESTION = "jitted a+b, float32 of size"


def size(report: Report, paces: Paces) -> None:
    """Time against size."""
    for n, pace in paces.items():
        _size(report, n, pace)


def _size(report: Report, n: int, pace: Pace) -> None:
    a, b = normal(n, n)
    ta, tb = tensors(a, b)
    check = identical(np.asarray(a) + np.asarray(b))
    race, versus = Race(QUESTION, report, n), Versus(TORCH)
    race.enter(TORCH, lambda: lambda: ta + tb, None, check)
    race.enter(FLOOR, lambda: jitted(floor, a, b), versus)
    race.enter("t2j", lambda: jitted(t2j(lambda x, y: x + y), a, b), versus, check)
    race.enter(PEER, lambda: jitted(peer(lambda x, y: x + y, a, b), a, b), versus, check)
    race.enter(TVM, lambda: jitted(tvm_ffi(torch.add), a, b), versus, check)
    race.enter("buffer_callback", lambda: jitted(buffer_callback(torch.add), a, b), versus, check)
    race.enter("pure_callback", lambda: jitted(pure_callback(torch.add), a, b), versus, check)
    race.enter(JNP, lambda: jitted(jax.numpy.add, a, b), versus, check)
    race.run(pace)


if __name__ == "__main__":
    main({"size": size}, FULL, QUICK)
