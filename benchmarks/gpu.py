"""The same questions on a GPU: `python benchmarks/gpu.py [--quick] --output FILE`; `scripts/gpu_check.sh` runs it.

A call is timed in three ways: until its result is there; many calls in a row, then one wait, which is the time of the
device if that is the slower part; and until it returns, which is what the host pays.
What the kernels of a call take is read from a profile, too.
T2J_BENCH_DEVICE=cpu tries the script where there is no GPU. After T2J_BENCH_SECONDS no further race begins.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

os.environ.setdefault("T2J_BENCH_CORES", "all")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU's memory is for two allocators

from _harness import Pace, Race, Report, Versus, count_row, sample_row
from _script import main

# The harness comes first because it sets up threads before torch loads.
# isort: split
import jax
import jax.numpy as jnp
import torch
from _contestants import FLOOR, JNP, PEER, TORCH, floor, like, peer, t2j, t2j_autodiff
from _models import Loss, Params, loss_of
from torch.utils.dlpack import from_dlpack

DEVICE = torch.device(os.environ.get("T2J_BENCH_DEVICE", "cuda"))
GRAPH = "torch, CUDA graph"
QUEUED = 20
LARGE = 10**7  # floats from which a call takes long enough to need few rounds
END = time.monotonic() + float(os.environ.get("T2J_BENCH_SECONDS", "inf"))


class Plan(NamedTuple):
    """What is measured, and for how long."""

    pace: Pace
    slow: Pace  # for calls that take long
    sizes: tuple[int, ...]
    calls: int
    models: int


FULL = Plan(Pace(21, 0.01, 0.1), Pace(11, 0.01, 0.0), tuple(10**k for k in range(3, 10)), 2000, 2)
QUICK = Plan(Pace(2, 0.002, 0.01), Pace(1, 0.002, 0.0), (10**3, 10**6), 20, 1)

Launch = Callable[[], Any]
"""Queues work and answers what will hold its result."""


def wait(result: Any) -> Any:
    """Return when what was queued is done."""
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(result)):
        return jax.block_until_ready(result)
    if DEVICE.type == "cuda":
        torch.cuda.current_stream().synchronize()
    return result


def queued(launch: Launch, times: int = QUEUED) -> Launch:
    """Many calls, of which the last is answered."""

    def launches() -> Any:
        for _ in range(times - 1):
            launch()
        return launch()

    return launches


def on_device(result: Any) -> list[torch.Tensor]:
    """A result as tensors, where it lies."""
    return [leaf if isinstance(leaf, torch.Tensor) else from_dlpack(leaf) for leaf in jax.tree.leaves(result)]


def same(expected: Any, tolerance: float) -> Callable[[Any], None]:
    """A check that a result has these leaves, to a part of each leaf's largest number, made where they lie."""
    wanted = on_device(expected)

    def check(result: Any) -> None:
        for mine, other in zip(on_device(result), wanted, strict=True):
            difference, scale = float((mine - other).abs().max()), float(other.abs().max())
            if not difference <= tolerance * scale:
                raise AssertionError(f"A result differs by {difference:.2g}, where the largest number is {scale:.2g}.")

    return check


def graphed(run: Launch) -> Launch:
    """A replay of what `run` does, captured in a CUDA graph."""
    if DEVICE.type != "cuda":
        raise RuntimeError("CUDA graphs need a GPU")
    side = torch.cuda.Stream()
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


def buffer_callback(fn: Callable[..., object]) -> Callable[..., Any]:
    """JAX's own, by hand: torch on XLA's stream, writing into XLA's memory."""
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
    in_jit = lambda fn: (lambda call: lambda: call(a, b))(jax.jit(fn))
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
    """Time against size, until the result is there, and of many calls in a row."""
    for n in plan.sizes:
        made = adders(n)
        expected = made[TORCH]()()
        _race("a+b, float32 of size", made, expected, report, plan, n)
        _race(f"{QUEUED} times a+b, float32 of size", made, expected, report, plan, n, QUEUED)
        _free()


def _free() -> None:
    """Leave no memory to the next question's allocator that this one's holds."""
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def _race(
    question: str,
    made: Mapping[str, Callable[[], Launch]],
    expected: Any,
    report: Report,
    plan: Plan,
    at: int | None = None,
    times: int = 1,
    tolerance: float = 1e-6,
    pace: Pace | None = None,
) -> None:
    race = Race(question, report, at)
    exact = same(expected, tolerance)
    for name, make in made.items():
        if time.monotonic() > END:
            report.skip(question if at is None else f"{question}, {at:,.0f}", name, TimeoutError("T2J_BENCH_SECONDS"))
            continue
        check = None if name == FLOOR else exact
        versus = None if name == TORCH else Versus(TORCH)
        race.enter(
            name, lambda make=make: (lambda launch: lambda: wait(launch()))(queued(make(), times)), versus, check
        )
    race.run(pace or (plan.slow if at is not None and at >= LARGE else plan.pace))


def in_place(report: Report, plan: Plan) -> None:
    """Adding to an array that is donated."""
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
    _race("w += g, donated", made, g, report, plan, tolerance=1e9, pace=plan.slow)  # each has added another number


def device(report: Report, plan: Plan) -> None:
    """What the GPU works in one call, as a profile tells it: kernels and copies, without what lies between them."""
    if DEVICE.type != "cuda":
        raise RuntimeError("a profile of the device needs a GPU")
    for n in plan.sizes[::3]:
        for name, make in adders(n).items():
            question = f"work of the GPU in a+b of {n:,.0f} floats"
            if time.monotonic() > END:
                report.skip(question, name, TimeoutError("T2J_BENCH_SECONDS"))
                continue
            try:
                report.rows.append(count_row(question, name, "us", _profiled(make())))
            except Exception as error:
                report.skip(question, name, error)
        _free()


def _profiled(launch: Launch, times: int = 10) -> float:
    """Microseconds of the GPU's own time in one call."""
    for _ in range(3):
        wait(launch())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(times):
            result = launch()
        wait(result)
    return sum(event.self_device_time_total for event in profile.key_averages()) / times


def host(report: Report, plan: Plan) -> None:
    """How long a call of 8 floats keeps the host."""
    question = "host time of a+b, 8 floats"
    launches: dict[str, Launch] = {}
    for name, make in adders(8).items():
        try:
            launch = make()
            wait(launch())
        except Exception as error:
            report.skip(question, name, error)
        else:
            launches[name] = launch
    taken: dict[str, list[float]] = {name: [] for name in launches}
    for _ in range(plan.calls // 20):
        for name, launch in launches.items():
            result = launch()
            for _ in range(20):
                start = time.perf_counter()
                result = launch()
                taken[name].append(1e6 * (time.perf_counter() - start))
            wait(result)
    for name, values in taken.items():
        report.rows.append(sample_row(question, name, values, 15.0 if name == "t2j" else None, "us"))
    if FLOOR in taken and "t2j" in taken:
        difference = statistics.median(taken["t2j"]) - statistics.median(taken[FLOOR])
        report.rows.append(sample_row(question, "t2j above the floor", [difference], None, "us"))


def chain(report: Report, plan: Plan) -> None:
    """A program of 100 small torch calls."""
    x = jnp.ones(1000)
    tx = torch.ones(1000, device=DEVICE)

    def program(f: Callable[..., Any], start: Any) -> Any:
        for _ in range(100):
            start = f(start)
        return start

    sine = t2j(torch.sin)
    made: dict[str, Callable[[], Launch]] = {
        TORCH: lambda: lambda: program(torch.sin, tx),
        GRAPH: lambda: graphed(lambda: program(torch.sin, tx)),
        "t2j, 100 calls": lambda: (lambda f: lambda: f(x))(jax.jit(lambda x: program(sine, x))),
        "t2j, 1 call": lambda: (lambda f: lambda: f(x))(jax.jit(t2j(lambda x: program(torch.sin, x)))),
        JNP: lambda: (lambda f: lambda: f(x))(jax.jit(lambda x: program(jnp.sin, x))),
    }
    _race("100 sines of 1,000 floats", made, made[TORCH]()(), report, plan, tolerance=1e-4)


# --- models -----------------------------------------------------------------------------------------------------------


def bert() -> torch.nn.Module:
    """MiniLM's architecture with random weights."""
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    return Hidden(BertModel(config, add_pooling_layer=False).eval())


class Hidden(torch.nn.Module):
    """The last hidden state of a model of transformers."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids).last_hidden_state


class Encoder(torch.nn.Module):
    """A transformer of 12 layers and 98 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(16_384, 768)
        layer = torch.nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layers(self.embed(ids))


MODELS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, int]]] = {
    "MiniLM, 64 x 128 tokens": (bert, (64, 128)),
    "transformer of 98M parameters, 16 x 256 tokens": (Encoder, (16, 256)),
}


def models(report: Report, plan: Plan) -> None:
    """Forward, and value_and_grad, of two models, in float32."""
    for name in list(MODELS)[: plan.models]:
        make, shape = MODELS[name]
        torch.manual_seed(0)
        try:
            loss, params = loss_of(make().to(DEVICE))
        except ImportError as error:
            report.skip(name, "all", error)
            continue
        ids = torch.randint(0, 10_000, shape, device=DEVICE)
        _forward(f"forward, {name}", loss, params, ids, report, plan)
        _step(f"value_and_grad, {name}", loss, params, ids, report, plan)


def _forward(question: str, loss: Loss, params: Params, ids: torch.Tensor, report: Report, plan: Plan) -> None:
    def native() -> torch.Tensor:
        with torch.no_grad():
            return loss(params, ids)

    arrays = in_jax((params, ids))
    made: dict[str, Callable[[], Launch]] = {
        TORCH: lambda: native,
        GRAPH: lambda: graphed(native),
        "t2j": lambda: _call(t2j(loss), arrays),
        PEER: lambda: _call(peer(loss, *arrays, entry="torch2jax_without_vjp"), arrays),
    }
    _race(question, made, native(), report, plan, tolerance=1e-3, pace=plan.slow)


def _step(question: str, loss: Loss, params: Params, ids: torch.Tensor, report: Report, plan: Plan) -> None:
    leaves = {key: p.clone().requires_grad_() for key, p in params.items()}

    def native() -> Any:
        value = loss(leaves, ids)
        return value.detach(), dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))

    arrays = in_jax((params, ids))
    made: dict[str, Callable[[], Launch]] = {
        TORCH: lambda: native,
        GRAPH: lambda: graphed(native),
        "t2j": lambda: _call(jax.value_and_grad(t2j_autodiff(loss)), arrays),
        PEER: lambda: _call(jax.value_and_grad(peer(loss, *arrays)), arrays),
    }
    _race(question, made, native(), report, plan, tolerance=1e-2, pace=plan.slow)


def _call(fn: Callable[..., Any], args: Any) -> Launch:
    call = jax.jit(fn)
    return lambda: call(*args)


def in_jax(tree: Any) -> Any:
    """A tree of tensors as JAX arrays of their own on the same device."""
    return jax.tree.map(lambda tensor: jnp.array(jax.dlpack.from_dlpack(tensor.detach()), copy=True), tree)


if __name__ == "__main__":
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        sys.exit("Needs a GPU that PyTorch can use. T2J_BENCH_DEVICE=cpu only tries the script.")
    questions = {"host": host, "chain": chain, "models": models, "device": device, "in_place": in_place, "size": size}
    main(questions, FULL, QUICK)
