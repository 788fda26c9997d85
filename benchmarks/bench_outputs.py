"""The cost of each way to write a result: `python benchmarks/bench_outputs.py [--quick]`."""

from __future__ import annotations

from _harness import Call, Pace, Race, Report, Versus
from _script import main

# The harness comes first because it pins the threads before torch loads.
# isort: split
import jax
import numpy as np
import torch
from _contestants import PEER, TORCH, TVM, identical, jitted, normal, peer, t2j, tensors, tvm_ffi

Paces = dict[int, Pace]
FULL = {10**k: Pace(31) for k in range(2, 7)} | {10**7: Pace(21)}
QUICK = {10**k: Pace(5, 0.004, 0.02) for k in (3, 5, 6)}
TARGETS = {10**7: {"t2j auto": 1.15, "t2j in place": 0.4}}


def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a + b


def add_out(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    return torch.add(a, b, out=out)


def add_in_place(p: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return p.add_(g)


def donated(p: jax.Array, g: jax.Array) -> Call:
    """An update in place whose result is the next call's argument."""
    step = jax.jit(t2j(add_in_place, mutable_argnums=(0,)), donate_argnums=0)
    held = [jax.numpy.array(p, copy=True)]

    def call() -> jax.Array:
        held[0] = step(held[0], g)
        return held[0].block_until_ready()

    return call


def updating(p: torch.Tensor, g: torch.Tensor) -> Call:
    return lambda: p.add_(g)


def outputs(report: Report, paces: Paces) -> None:
    """The values of `outputs=`, and an update of a donated argument."""
    for n, pace in paces.items():
        _outputs(report, n, pace)


def _outputs(report: Report, n: int, pace: Pace) -> None:
    a, b = normal(n, n)
    ta, tb = tensors(a, b)
    check, goals = identical(np.asarray(a) + np.asarray(b)), TARGETS.get(n, {})
    race, versus = Race("outputs of a+b, float32 of size", report, n), Versus(TORCH)
    race.enter(TORCH, lambda: lambda: ta + tb, None, check)
    race.enter("torch, in place", lambda: updating(ta.clone(), tb), versus, check)
    race.enter("t2j auto", lambda: jitted(t2j(add, outputs="auto"), a, b), Versus(TORCH, goals.get("t2j auto")), check)
    race.enter("t2j out", lambda: jitted(t2j(add_out, outputs="out"), a, b), versus, check)
    race.enter("t2j copy", lambda: jitted(t2j(add, outputs="copy"), a, b), versus, check)
    race.enter("t2j in place", lambda: donated(a, b), Versus("t2j copy", goals.get("t2j in place")), check)
    race.enter(TVM, lambda: jitted(tvm_ffi(torch.add), a, b), versus, check)
    race.enter(PEER, lambda: jitted(peer(add, a, b), a, b), versus, check)
    race.run(pace)


if __name__ == "__main__":
    main({"outputs": outputs}, FULL, QUICK)
