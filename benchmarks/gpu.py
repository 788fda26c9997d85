"""The benchmarks on a GPU: `python benchmarks/gpu.py [--quick] --output FILE`; `scripts/gpu_check.sh` runs it.

The most important questions come first, and results are saved after each question. After T2J_BENCH_SECONDS no
contestant enters. T2J_BENCH_DEVICE=cpu tries the script without a GPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from _gpu import (
    DEVICE,
    FULL,
    GRAPH,
    LARGE,
    QUEUED,
    QUICK,
    Launch,
    Plan,
    again,
    call,
    free,
    graphed,
    in_time,
    race,
    returns,
    wait,
)
from _gpu_models import attention, compiled, leaves, mlp, models
from _harness import Report, count_row
from _script import main

# These come first because they set up threads before torch loads.
# isort: split
import jax
import jax.numpy as jnp
import torch
from _contestants import FLOOR, JNP, PEER, TORCH, floor, like, peer, t2j
from torch.utils.dlpack import from_dlpack

CHAINED = 100  # calls in one program
TARGET = 15.0  # microseconds of a call that t2j itself may take


def buffer_callback(fn: Callable[..., object]) -> Callable[..., Any]:
    """JAX's callback, called by hand: torch on XLA's stream writes into XLA's memory."""
    from jax.experimental.buffer_callback import buffer_callback as callback

    def write(context: Any, out: Any, *args: Any) -> None:
        if DEVICE.type != "cuda":
            fn(*map(from_dlpack, args), out=from_dlpack(out))
            return
        with torch.cuda.stream(torch.cuda.ExternalStream(context.stream)):
            fn(*map(from_dlpack, args), out=from_dlpack(out))

    return lambda *args: callback(write, like(args[0]))(*args)


def adders(n: int) -> dict[str, Callable[[], Launch]]:
    """Ways to add two arrays of n floats."""
    torch.manual_seed(0)
    ta, tb = torch.randn(n, device=DEVICE), torch.randn(n, device=DEVICE)
    a, b = jax.dlpack.from_dlpack(ta), jax.dlpack.from_dlpack(tb)
    in_jit = lambda fn: call(fn, (a, b))
    return {
        TORCH: lambda: lambda: ta + tb,
        GRAPH: lambda: graphed(lambda: ta + tb),
        FLOOR: lambda: in_jit(floor),
        "t2j": lambda: in_jit(t2j(lambda x, y: x + y)),
        "t2j out": lambda: in_jit(t2j(torch.add, outputs="out", output_shapes=like(a))),
        "t2j copy": lambda: in_jit(t2j(lambda x, y: x + y, outputs="copy")),
        PEER: lambda: in_jit(peer(lambda x, y: x + y, a, b)),
        "buffer_callback": lambda: in_jit(buffer_callback(torch.add)),
        JNP: lambda: in_jit(jnp.add),
    }


def size(report: Report, plan: Plan) -> None:
    """Time against size, until the result is ready, and of many calls in a row."""
    question = "a+b, float32 of size"
    for n in plan.sizes:
        if not in_time(report, f"{question}, {n:,}"):
            continue
        makers, pace = adders(n), plan.slow if n >= LARGE else plan.brief
        expected = makers[TORCH]()()
        ready = race(question, makers, expected, report, pace, at=n)
        race(f"{QUEUED} times {question}", again(ready), expected, report, pace, at=n, times=QUEUED)
        del makers, expected, ready
        free()


def in_place(report: Report, plan: Plan) -> None:
    """Addition to a donated array."""
    n = min(plan.sizes[-1], 10**8)
    w, g = torch.zeros(n, device=DEVICE), torch.full((n,), 1e-6, device=DEVICE)
    gradient = jax.dlpack.from_dlpack(g)

    def donated(fn: Callable[..., Any]) -> Launch:
        step, state = jax.jit(fn, donate_argnums=0), [jnp.zeros(n, device=gradient.device)]

        def launch() -> Any:
            state[0] = step(state[0], gradient)
            return state[0]

        return launch

    made: dict[str, Callable[[], Launch]] = {
        TORCH: lambda: lambda: w.add_(g),
        "t2j": lambda: donated(t2j(lambda w, g: w.add_(g), mutable_argnums=0)),
        JNP: lambda: donated(jnp.add),
    }
    race("w += g, donated", made, g, report, plan.slow, tolerance=1e9)  # each has added a different number of times
    free()


def device(report: Report, plan: Plan) -> None:
    """The GPU time of one call from a profile: kernels and copies, without the gaps between them.

    This question comes last, because a profiler may stay attached and slow down later calls.
    """
    if DEVICE.type != "cuda":
        raise RuntimeError("a profile of the device needs a GPU")
    # CUDA graphs may crash after a profiler is detached and attached again: see `prepare_trace` in torch.profiler.
    os.environ.update(DISABLE_CUPTI_LAZY_REINIT="1", TEARDOWN_CUPTI="0")
    for n in plan.profiled:
        question = f"work of the GPU in a+b of {n:,.0f} floats"
        for name, make in adders(n).items():
            if not in_time(report, question, name):
                continue
            try:
                report.rows.append(count_row(question, name, "us", _profiled(make())))
            except Exception as error:  # a missing contestant must not stop the others
                report.skip(question, name, error)
        free()


def _profiled(launch: Launch, times: int = 10) -> float:
    """Microseconds of GPU time in one call."""
    for _ in range(3):
        wait(launch())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(times):
            result = launch()
        wait(result)
    return sum(event.self_device_time_total for event in profile.key_averages()) / times


def host(report: Report, plan: Plan) -> None:
    """The host time of a call on 8 floats, and the part that is neither JAX's dispatch nor torch's operation."""
    question = "host time of a+b, 8 floats"
    makers = adders(8)
    ready = race("a+b, 8 floats", makers, makers[TORCH]()(), report, plan.brief)
    medians = returns(question, ready, report, plan.calls // 20, 20)
    if {FLOOR, TORCH, "t2j"} <= medians.keys():
        above = medians["t2j"] - medians[FLOOR]
        report.rows += [
            count_row(question, "t2j above the floor", "us", above),
            count_row(question, "t2j above the floor and torch's own time", "us", above - medians[TORCH], TARGET),
        ]


def chain(report: Report, plan: Plan) -> None:
    """A program of 100 small torch calls."""
    x = jnp.ones(1000)
    tx = torch.ones(1000, device=DEVICE)

    def program(f: Callable[..., Any], start: Any) -> Any:
        for _ in range(CHAINED):
            start = f(start)
        return start

    sine, many = t2j(torch.sin), f"t2j, {CHAINED} calls"
    makers: dict[str, Callable[[], Launch]] = {
        TORCH: lambda: lambda: program(torch.sin, tx),
        GRAPH: lambda: graphed(lambda: program(torch.sin, tx)),
        many: lambda: call(lambda x: program(sine, x), [x]),
        "t2j, 1 call": lambda: call(t2j(lambda x: program(torch.sin, x)), [x]),
        JNP: lambda: call(lambda x: program(jnp.sin, x), [x]),
    }
    question, before = f"{CHAINED} sines of 1,000 floats", len(report.rows)
    race(question, makers, makers[TORCH]()(), report, plan.pace, tolerance=1e-4)
    medians = {row.name: row.value.median for row in report.rows[before:]}
    if {TORCH, many} <= medians.keys():
        above = (medians[many] - medians[TORCH]) / CHAINED
        report.rows.append(count_row(question, f"{many}: each above torch", "us", above))


if __name__ == "__main__":
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        sys.exit("Needs a GPU that PyTorch can use. T2J_BENCH_DEVICE=cpu only tries the script.")
    small = {"host": host, "chain": chain}
    large = {"leaves": leaves, "models": models, "attention": attention, "mlp": mlp, "compiled": compiled}
    main({**small, **large, "in_place": in_place, "size": size, "device": device}, FULL, QUICK)
