"""How `gpu.py` measures: on which device, for how long, and which part of a call.

A call is timed in three ways: until its result is ready; many calls in a row and then one wait, which is the time of
the device if the device is the slower part; and until the call returns, which is the host time.

t2j checks the arguments of calls 1, 2, 4, 8, ... of a program. These calls take longer; medians exclude them.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

os.environ.setdefault("T2J_BENCH_CORES", "all")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU's memory is for two allocators

from _harness import Pace, Race, Report, Versus, sample_row

# The harness comes first because it sets up threads before torch loads.
# isort: split
import jax
import jax.numpy as jnp
import torch
from _contestants import FLOOR, TORCH
from torch.utils.dlpack import from_dlpack

# Both frameworks compute float32 in full precision. By default torch does so in matrix products but not in
# convolutions, and JAX in neither.
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False
jax.config.update("jax_default_matmul_precision", "highest")

DEVICE = torch.device(os.environ.get("T2J_BENCH_DEVICE", "cuda"))
GRAPH = "torch, CUDA graph"
QUEUED = 20
LARGE = 10**7  # from this many floats a call takes long enough to need only a few rounds
END = time.monotonic() + float(os.environ.get("T2J_BENCH_SECONDS", "inf"))


class Plan(NamedTuple):
    """The sizes that are measured, and for how long."""

    pace: Pace
    slow: Pace  # for calls that take milliseconds
    brief: Pace  # for questions with many races
    sizes: tuple[int, ...]
    profiled: tuple[int, ...]  # sizes whose device time is read from a profile
    layers: tuple[int, ...]  # linear layers, each of two leaves
    calls: int  # calls on eight floats for the host time
    is_quick: bool


FULL = Plan(
    pace=Pace(9, 0.01, 0.03),
    slow=Pace(7, 0.005, 0.0),
    brief=Pace(5, 0.005, 0.01),
    sizes=tuple(10**k for k in range(3, 10)),
    profiled=(10**3, 10**8),
    layers=(5, 50, 150),
    calls=2000,
    is_quick=False,
)
QUICK = Plan(
    pace=Pace(2, 0.002, 0.01),
    slow=Pace(1, 0.002, 0.0),
    brief=Pace(2, 0.002, 0.01),
    sizes=(10**3, 10**6),
    profiled=(10**3,),
    layers=(5, 50),
    calls=20,
    is_quick=True,
)

Launch = Callable[[], Any]
"""Queues work and returns its result, which may not be ready."""
Makers = Mapping[str, Callable[[], Launch]]
"""Contestants by name; each is built when its turn comes."""


# --- what is timed ----------------------------------------------------------------------------------------------------


def wait(result: Any) -> Any:
    """Wait until the queued work is done, and return the result."""
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(result)):
        return jax.block_until_ready(result)
    if DEVICE.type == "cuda":
        torch.cuda.current_stream().synchronize()
    return result


def queued(launch: Launch, times: int = QUEUED) -> Launch:
    """A launch of many calls that returns the result of the last one."""

    def launches() -> Any:
        for _ in range(times - 1):
            launch()
        return launch()

    return launches


def call(fn: Callable[..., Any], args: Any) -> Launch:
    """A call of a jitted function."""
    jitted = jax.jit(fn)
    return lambda: jitted(*args)


def graphed(run: Launch) -> Launch:
    """A replay of `run`, captured in a CUDA graph."""
    if DEVICE.type != "cuda":
        raise RuntimeError("CUDA graphs need a GPU")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


# --- races ------------------------------------------------------------------------------------------------------------


def race(
    question: str,
    makers: Makers,
    expected: Any,
    report: Report,
    pace: Pace,
    *,
    at: int | None = None,
    times: int = 1,
    tolerance: float = 1e-6,
    seconds: float = 0.0,
) -> dict[str, Launch]:
    """Time contestants until their results are ready, and return those that took part.

    No contestant enters later than `seconds` before the end of T2J_BENCH_SECONDS.
    """
    contest, exact = Race(question, report, at), same(expected, tolerance)
    ready: dict[str, Launch] = {}
    for name, make in makers.items():
        if not in_time(report, question if at is None else f"{question}, {at:,.0f}", name, seconds):
            continue

        def built(name: str = name, make: Callable[[], Launch] = make) -> Callable[[], Any]:
            ready[name] = make()
            launch = queued(ready[name], times)
            return lambda: wait(launch())

        versus = None if name == TORCH else Versus(TORCH)
        if not contest.enter(name, built, versus, None if name == FLOOR else exact):
            ready.pop(name, None)
    contest.run(pace)
    return ready


def again(ready: Mapping[str, Launch]) -> Makers:
    """The contestants of a previous race, already built."""
    return {name: lambda launch=launch: launch for name, launch in ready.items()}  # type: ignore[misc]


def in_time(report: Report, question: str, name: str = "all", seconds: float = 0.0) -> bool:
    """Whether T2J_BENCH_SECONDS leaves that many seconds; otherwise the report lists the question as skipped."""
    if time.monotonic() + seconds <= END:
        return True
    report.skip(question, name, TimeoutError("T2J_BENCH_SECONDS"))
    return False


def on_device(result: Any) -> list[torch.Tensor]:
    """A result as tensors on its own device."""
    return [leaf if isinstance(leaf, torch.Tensor) else from_dlpack(leaf) for leaf in jax.tree.leaves(result)]


def same(expected: Any, tolerance: float) -> Callable[[Any], None]:
    """A check on the device that a result has these leaves, within `tolerance` times the largest number of each leaf.

    A millionth of the largest number of all leaves is always allowed: the gradient of the bias of attention's keys is
    zero except for rounding errors.
    """
    wanted = on_device(expected)
    scales = [float(leaf.abs().max()) for leaf in wanted]

    def check(result: Any) -> None:
        for mine, other, scale in zip(on_device(result), wanted, scales, strict=True):
            if mine.shape != other.shape or mine.dtype != other.dtype:
                raise AssertionError(f"A result is {mine.dtype} {mine.shape}, not {other.dtype} {other.shape}.")
            difference = float((mine - other).abs().max())
            if not difference <= tolerance * scale + 1e-6 * max(scales):
                raise AssertionError(f"A result differs by {difference:.2g}, where the largest number is {scale:.2g}.")

    return check


# --- the host ---------------------------------------------------------------------------------------------------------


def returns(
    question: str,
    launches: Mapping[str, Launch],
    report: Report,
    visits: int,
    calls: int,
    at: int | None = None,
) -> dict[str, float]:
    """Report the host time of calls: `calls` calls of each contestant in a row, then a wait, in turns.

    Returns the medians in microseconds. The first call of a visit is not timed.
    """
    taken: dict[str, list[float]] = {name: [] for name in launches}
    for _ in range(visits):
        for name, launch in launches.items():
            result = launch()
            for _ in range(calls):
                start = time.perf_counter()
                result = launch()
                taken[name].append(1e6 * (time.perf_counter() - start))
            wait(result)
    report.rows += [replace(sample_row(question, name, values, unit="us"), at=at) for name, values in taken.items()]
    return {name: statistics.median(values) for name, values in taken.items()}


# --- memory -----------------------------------------------------------------------------------------------------------


def in_jax(tree: Any) -> Any:
    """A tree of tensors as JAX arrays with their own memory on the same device."""
    return jax.tree.map(lambda tensor: jnp.array(jax.dlpack.from_dlpack(tensor.detach()), copy=True), tree)


def free() -> None:
    """Release the memory that the allocators hold, for the next question."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
