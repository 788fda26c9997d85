"""The cost of sharded calls through t2j_dist, on 8 virtual CPU devices: `python benchmarks/bench_dist.py [--quick]`."""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["T2J_BENCH_CORES"] = "all"
os.environ.setdefault("NPROC", "64")  # XLA's threads: a collective needs one per device and step in flight

from _harness import Call, Pace, Race, Report, Versus, count_row
from _script import main

# The harness comes first because it pins the threads before torch loads.
# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import torch
from _contestants import COMPILED, calls, same
from _lifetime import rss_mb
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from t2j_core import testing
from t2j_dist import torch2jax

FULL, QUICK = Pace(21), Pace(2, 0.004, 0.02)
COLLECTIVES = re.compile(r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")

TORCH_ALONE = "torch, a step for each device"

Params = list[Any]
Model = Callable[[Params, Any], Any]


def mesh_of(devices: int) -> jax.sharding.Mesh:
    """A one-dimensional mesh of the first devices."""
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def in_torch(params: Params, x: torch.Tensor) -> torch.Tensor:
    """A multilayer perceptron with tanh; its mean square."""
    for w in params:
        x = torch.tanh(x @ w)
    return (x**2).mean()


def in_jnp(params: Params, x: jax.Array) -> jax.Array:
    """The same in jnp."""
    for w in params:
        x = jnp.tanh(x @ w)
    return (x**2).mean()


def step_of(model: Model, mesh: jax.sharding.Mesh) -> Any:
    """A jitted data-parallel `value_and_grad`."""

    def shard(params: Params, x: Any) -> Any:
        return jax.lax.pmean(model(params, x), "data")

    loss = jax.shard_map(shard, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    return jax.jit(jax.value_and_grad(loss))


def specified(mesh: jax.sharding.Mesh) -> Any:
    """The same step with specs instead of `shard_map`: the loss of each shard, then the mean."""
    fn = lambda params, x: in_torch(params, x)[None]
    sharded = torch2jax(fn, in_specs=(P(), P("data")), out_specs=P("data"), mesh=mesh)
    return jax.jit(jax.value_and_grad(lambda params, x: sharded(params, x).mean()))


def data(mesh: jax.sharding.Mesh, width: int, rows: int, depth: int = 3) -> tuple[Params, jax.Array]:
    """Replicated weights, and `rows` examples for each device."""
    keys = jax.random.split(jax.random.key(0), depth + 1)
    params = [jax.random.normal(key, (width, width)) / width**0.5 for key in keys[1:]]
    x = jax.random.normal(keys[0], (rows * mesh.size, width))
    return jax.device_put(params, NamedSharding(mesh, P())), jax.device_put(x, NamedSharding(mesh, P("data")))


def collectives(step: Any, *args: Any) -> int:
    """The number of collectives in the compiled step."""
    return len(COLLECTIVES.findall(step.lower(*args).compile().as_text()))


def data_parallel(report: Report, pace: Pace) -> None:
    """A data-parallel step, relative to the same step in jnp."""
    for width, rows in ((16, 4), (256, 64), (512, 256))[: 3 if pace is FULL else 1]:
        parallel_step(report, pace, width, rows)


def parallel_step(report: Report, pace: Pace, width: int, rows: int) -> None:
    """The step for one width of the model."""
    mesh = mesh_of(8)
    params, x = data(mesh, width, rows)
    question = f"data-parallel value_and_grad, 8 devices, MLP 3 x {width}, {rows} rows each"
    steps = {
        "jnp": step_of(in_jnp, mesh),
        "t2j": step_of(torch2jax(in_torch), mesh),
        "t2j by specs": specified(mesh),
    }
    race = Race(question, report)
    check = same(steps["jnp"](params, x), 1e-3)
    for name, step in steps.items():
        versus = None if name == "jnp" else Versus("jnp")
        race.enter(name, lambda step=step: calls(step, params, x), versus, check)
    race.run(pace)
    wanted = collectives(steps["jnp"], params, x)
    for name, step in steps.items():
        report.rows.append(count_row(question, f"{name}: collectives", "", collectives(step, params, x), wanted))


def native_steps(params: Params, x: jax.Array, devices: int) -> Call:
    """The step of each device in torch, one after another on this thread: without collectives, and without JAX."""
    leaves = [torch.tensor(np.asarray(w), requires_grad=True) for w in params]
    shards = [torch.tensor(part) for part in np.split(np.asarray(x), devices)]

    def step() -> Any:
        return [torch.autograd.grad(in_torch(leaves, shard), leaves) for shard in shards]

    return step


def growth(report: Report, pace: Pace) -> None:
    """The time of a step against the number of devices, with constant work per device: the host's cost."""
    for devices in (1, 2, 4, 8) if pace is FULL else (1, 8):
        small_step(report, pace, mesh_of(devices))


def small_step(report: Report, pace: Pace, mesh: jax.sharding.Mesh) -> None:
    """The step on one mesh."""
    params, x = data(mesh, 16, 4)
    race = Race(f"small value_and_grad step, {mesh.size} devices", report)
    race.enter("jnp", lambda: calls(step_of(in_jnp, mesh), params, x))
    target = 1.8 if mesh.size == 8 else None
    race.enter("t2j", lambda: calls(step_of(torch2jax(in_torch), mesh), params, x), Versus("jnp", target))
    compiled = lambda: calls(step_of(torch2jax(in_torch, compile=True), mesh), params, x)
    race.enter(COMPILED, compiled, Versus("jnp"))
    race.enter(TORCH_ALONE, lambda: native_steps(params, x, mesh.size), Versus("jnp"))
    race.run(pace)


def eager(report: Report, pace: Pace) -> None:
    """An eager sharded call, relative to the jitted one."""
    mesh = mesh_of(8)
    x = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, P("data")))
    race = Race("sharded sin, 8 devices", report)
    f = torch2jax(torch.sin, out_specs=P("data"))
    g = torch2jax(torch.sin, in_specs=P("data"), out_specs=P("data"), mesh=mesh)
    race.enter("jitted", lambda: calls(jax.jit(g), x))
    race.enter("eager, in_specs given", lambda: calls(g, x), Versus("jitted"))
    race.enter("eager, in_specs from the array", lambda: calls(f, x), Versus("jitted"))
    race.run(pace)


def stress(report: Report, pace: Pace) -> None:
    """Many steps with collectives between torch calls, next to a thread that holds the GIL: memory and time."""
    steps = 240 if pace is FULL else 8
    mesh = mesh_of(8)
    f = torch2jax(lambda w, x: torch.tanh(x @ w))

    def shard(params: Params, x: Any) -> Any:
        for w in params:
            x = f(w, x) + jax.lax.pmean(x.mean(), "data")
        return jax.lax.pmean((x**2).mean(), "data")

    loss = jax.shard_map(shard, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    step = jax.jit(jax.value_and_grad(loss))
    params, x = data(mesh, 32, 8)
    stop = threading.Event()

    def hog() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=hog, daemon=True)
    thread.start()
    memory: list[float] = []
    first = jax.block_until_ready(step(params, x))
    start = time.perf_counter()
    for number in range(steps):
        value = jax.block_until_ready(step(params, x))  # limits the steps in flight, because XLA has few CPU threads
        if (number + 1) % (steps // 4) == 0:
            gc.collect()
            memory.append(rss_mb())
    seconds = time.perf_counter() - start
    stop.set()
    thread.join()
    same(first, 1e-3)(value)
    question = f"{steps} steps with collectives between torch calls, beside a thread that hogs the GIL"
    torch_calls = steps * mesh.size * len(params) * 2
    report.rows += [
        count_row(question, "torch calls", "", torch_calls),
        count_row(question, "a step", "ms", 1e3 * seconds / steps),
        *(count_row(question, f"memory after {(k + 1) * steps // 4}", "MB", mb) for k, mb in enumerate(memory)),
        count_row(question, "growth over the last half", "MB", memory[-1] - memory[1], target=16),
        count_row(question, "functions alive", "", testing.live_functions()),
    ]


if __name__ == "__main__":
    main({"step": data_parallel, "growth": growth, "eager": eager, "stress": stress}, FULL, QUICK)
