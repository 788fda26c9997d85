"""The cost of each further argument: `python benchmarks/bench_leaves.py [--quick]`.

The argument is a dict of arrays of 8 floats, like the parameters of a model. The result is one small array.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from _harness import Call, Pace, Race, Report, Versus
from _script import main

# The harness comes first because it pins the threads before torch loads.
# isort: split
import jax
import numpy as np
import torch
from _contestants import FLOOR, JNP, PEER, TVM, buffer_callback, calls, floor, jitted, peer, same, t2j, tvm_ffi

Weights = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The numbers of leaves, and how long to measure each."""

    leaves: tuple[int, ...]
    pace: Pace
    tracing: Pace


FULL = Plan((1, 4, 10, 40, 100, 400, 1000), Pace(41), Pace(15))
QUICK = Plan((1, 100, 400), Pace(5, 0.004, 0.02), Pace(3, 0.004, 0.02))
TARGETS = (100, 400)  # t2j must not be slower than its predecessor here


def first_plus_one(weights: Weights) -> Any:
    return weights["w0000"] + 1


def first_plus_one_into(*weights: torch.Tensor, out: torch.Tensor) -> None:
    torch.add(weights[0], 1, out=out)


def arrays(n: int) -> Weights:
    return {f"w{i:04d}": jax.numpy.full(8, i, "float32") for i in range(n)}


def flat(fn: Callable[..., Any]) -> Callable[[Weights], Any]:
    """The function for contestants that do not take a dict."""
    return lambda weights: fn(*weights.values())


def of_leaves(report: Report, plan: Plan) -> None:
    """Jitted and eager calls."""
    for n in plan.leaves:
        _calls(report, plan.pace, n)


def _calls(report: Report, pace: Pace, n: int) -> None:
    weights = arrays(n)
    check = same(np.ones(8, "float32"))
    race, versus = Race("call, dict of leaves", report, n), Versus(FLOOR)
    race.enter(FLOOR, lambda: jitted(flat(floor), weights))
    race.enter(PEER, lambda: jitted(peer(first_plus_one, weights), weights), versus, check)
    ours = Versus(PEER, 1.0) if n in TARGETS else versus
    race.enter("t2j", lambda: jitted(t2j(first_plus_one), weights), ours, check)
    race.enter(TVM, lambda: jitted(flat(tvm_ffi(first_plus_one_into)), weights), versus, check)
    race.enter("buffer_callback", lambda: jitted(flat(buffer_callback(first_plus_one_into)), weights), versus, check)
    race.enter("t2j eager", lambda: calls(t2j(first_plus_one), weights), Versus("t2j"), check)
    race.enter(f"{PEER} eager", lambda: calls(peer(first_plus_one, weights), weights), Versus(PEER), check)
    race.run(pace)


def tracing(report: Report, plan: Plan) -> None:
    """Wrap, trace and lower. Nothing is compiled or run except the contestant's own inference of the outputs."""
    for n in plan.leaves:
        _tracing(report, plan.tracing, n)


def _tracing(report: Report, pace: Pace, n: int) -> None:
    weights = arrays(n)
    race, versus = Race("wrap, trace and lower, dict of leaves", report, n), Versus(JNP)

    def lowered(wrap: Callable[[], Callable[[Weights], Any]]) -> Call:
        """A call that wraps the function again, so that no cache of JAX or of the contestant is used."""
        return lambda: jax.jit(wrap(), keep_unused=True).lower(weights)

    race.enter(JNP, lambda: lowered(lambda: lambda w: first_plus_one(w)))
    race.enter(FLOOR, lambda: lowered(lambda: flat(floor)), versus)
    race.enter(PEER, lambda: lowered(lambda: peer(lambda w: first_plus_one(w), weights)), versus)
    race.enter("t2j", lambda: lowered(lambda: t2j(lambda w: first_plus_one(w))), versus)
    race.enter("buffer_callback", lambda: lowered(lambda: flat(buffer_callback(first_plus_one_into))), versus)
    race.enter(TVM, lambda: registered(lowered), versus)
    race.run(pace)


def registered(lowered: Callable[[Callable[[], Any]], Call]) -> Call:
    """`jax-tvm-ffi` never removes a function, so all calls share one."""
    target = tvm_ffi(first_plus_one_into)
    return lowered(lambda: flat(target))


if __name__ == "__main__":
    main({"calls": of_leaves, "tracing": tracing}, FULL, QUICK)
