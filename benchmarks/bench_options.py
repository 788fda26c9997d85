"""What options cost that other benchmarks leave at their defaults: `python benchmarks/bench_options.py [--quick]`.

Other benchmarks measure `outputs=` (bench_outputs), `residuals=` and `compile=` (bench_models, bench_gradients).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from _harness import Call, Pace, Race, Report, Versus
from _script import main

# The harness comes first because it pins the threads before torch loads.
# isort: split
import jax
import numpy as np
import torch
from _contestants import jitted, same, t2j_autodiff
from _models import in_jax, loss_of, mlp


@dataclass(frozen=True)
class Plan:
    """The numbers of leaves and of floats in one array, and how long to measure."""

    leaves: int
    floats: int
    pace: Pace
    tracing: Pace


FULL = Plan(100, 10**7, Pace(31), Pace(11))
QUICK = Plan(10, 10**5, Pace(3, 0.004, 0.02), Pace(1, 0.004, 0.0))


def arguments(report: Report, plan: Plan) -> None:
    """`arguments=` for many small arguments, and for one large argument."""
    torch.manual_seed(0)
    loss, params = loss_of(mlp(16, plan.leaves // 2))
    x = torch.randn(16, 16)
    arrays = in_jax((params, x))
    race = Race(f"arguments=, forward of {plan.leaves} leaves", report)
    _arguments(race, loss, arrays, loss(params, x).numpy(), plan.pace)
    large = np.ones(plan.floats, "float32")
    race = Race(f"arguments=, sum of {plan.floats:,} floats", report)
    _arguments(race, torch.sum, (jax.numpy.asarray(large),), large.sum(), plan.pace)


def _arguments(race: Race, fn: Any, arrays: Any, expected: Any, pace: Pace) -> None:
    for value in ("auto", "copy", "check"):
        make = lambda value=value: jitted(t2j_autodiff(fn, arguments=value), *arrays)
        race.enter(f't2j "{value}"', make, None if value == "auto" else Versus('t2j "auto"'), same(expected, 1e-4))
    race.run(pace)


def depth(report: Report, plan: Plan) -> None:
    """`depth=`: what it costs to trace and lower a new function, and to call it."""
    torch.manual_seed(0)
    loss, params = loss_of(mlp(64, 4))
    arrays = in_jax((params, torch.randn(16, 64)))

    def lowered(depth: int | None, *, is_step: bool) -> Call:
        def lower() -> object:
            fn = t2j_autodiff(lambda params, x: loss(params, x), depth=depth)
            return jax.jit(jax.value_and_grad(fn) if is_step else fn).lower(*arrays)

        return lower

    _depths("wrap, trace and lower a forward", report, plan.tracing, lambda d: lowered(d, is_step=False), 0)
    _depths("wrap, trace and lower a step", report, plan.tracing, lambda d: lowered(d, is_step=True), 1)
    step = lambda d: jitted(jax.value_and_grad(t2j_autodiff(loss, depth=d)), *arrays)
    _depths("call a step", report, plan.pace, step, 1)


def _depths(question: str, report: Report, pace: Pace, make: Any, least: int) -> None:
    race = Race(f"depth=, {question}, MLP 4 x 64", report)
    race.enter("t2j 2", lambda: make(2))
    for value in (least, None):
        race.enter(f"t2j {value}", lambda value=value: make(value), Versus("t2j 2"))
    race.run(pace)


if __name__ == "__main__":
    main({"arguments": arguments, "depth": depth}, FULL, QUICK)
