"""The overhead of one small call, jitted and eager: `python benchmarks/bench_core.py [--quick]`."""

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
    calls,
    floor,
    jitted,
    normal,
    peer,
    pure_callback,
    same,
    t2j,
    tensors,
    tvm_ffi,
)

FULL, QUICK = Pace(101), Pace(9, 0.004, 0.02)


def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a + b


def jitted_call(report: Report, pace: Pace) -> None:
    """The overhead of one jitted call."""
    a, b = normal(8, 8)
    ta, tb = tensors(a, b)
    check = same(np.asarray(a) + np.asarray(b))
    race, versus = Race("jitted a+b, 8 floats", report), Versus(FLOOR)
    race.enter(FLOOR, lambda: jitted(floor, a, b))
    race.enter("t2j", lambda: jitted(t2j(add), a, b), Versus(FLOOR, 2.0), check)
    race.enter(PEER, lambda: jitted(peer(add, a, b), a, b), versus, check)
    race.enter(TVM, lambda: jitted(tvm_ffi(torch.add), a, b), versus, check)
    race.enter("buffer_callback", lambda: jitted(buffer_callback(torch.add), a, b), versus, check)
    race.enter("pure_callback", lambda: jitted(pure_callback(torch.add), a, b), versus, check)
    race.enter(JNP, lambda: jitted(jax.numpy.add, a, b), versus, check)
    race.enter(TORCH, lambda: lambda: ta + tb, versus, check)
    race.run(pace)


def eager_call(report: Report, pace: Pace) -> None:
    """The wrapper called outside `jax.jit`, relative to the same one inside."""
    a, b = normal(8, 8)
    check = same(np.asarray(a) + np.asarray(b))
    race = Race("eager a+b, 8 floats", report)
    race.enter("t2j jitted", lambda: jitted(t2j(add), a, b), None, check)
    race.enter("t2j eager", lambda: calls(t2j(add), a, b), Versus("t2j jitted", 1.3), check)
    race.enter(f"{PEER} jitted", lambda: jitted(peer(add, a, b), a, b), None, check)
    for entry in ("torch2jax", "torch2jax_without_vjp"):
        name = f"{PEER} eager, {entry}"
        make = lambda entry=entry: calls(peer(add, a, b, entry=entry), a, b)
        race.enter(name, make, Versus(f"{PEER} jitted", 1.3), check)
    race.run(pace)


if __name__ == "__main__":
    main({"jitted": jitted_call, "eager": eager_call}, FULL, QUICK)
