"""The same questions on a GPU: `python benchmarks/gpu.py [--quick] --output FILE`; `scripts/gpu_check.sh` runs it.

A call is timed in three ways: until its result is there; many calls in a row, then one wait, which is the time of the
device if that is the slower part; and until it returns, which is what the host pays.
T2J_BENCH_DEVICE=cpu tries the script where there is no GPU.
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

from _harness import Pace, Race, Report, Versus, sample_row
from _script import main

# The harness comes first because it sets up threads before torch loads.
# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import torch
from _contestants import FLOOR, JNP, PEER, TORCH, floor, like, peer, same, t2j, t2j_autodiff
from _models import Loss, Params, loss_of
from torch.utils.dlpack import from_dlpack

DEVICE = torch.device(os.environ.get("T2J_BENCH_DEVICE", "cuda"))
GRAPH = "torch, CUDA graph"
QUEUED = 50


class Plan(NamedTuple):
    """What is measured, and for how long."""

    pace: Pace
    sizes: tuple[int, ...]
    calls: int
    models: int


FULL = Plan(Pace(21), (10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9), 2000, 2)
QUICK = Plan(Pace(2, 0.002, 0.01), (10**3, 10**6), 20, 1)

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


def on_host(result: Any) -> Any:
    """A result as NumPy arrays."""
    return jax.tree.map(lambda leaf: leaf.cpu().numpy() if isinstance(leaf, torch.Tensor) else np.asarray(leaf), result)


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
        PEER: lambda: in_jit(peer(lambda x, y: x + y, a, b)),
        "buffer_callback": lambda: in_jit(buffer_callback(torch.add)),
        JNP: lambda: in_jit(jnp.add),
    }


def size(report: Report, plan: Plan) -> None:
    """Time against size, until the result is there, and of many calls in a row."""
    for n in plan.sizes:
        made = adders(n)
        expected = on_host(made[TORCH]()())
        _race("a+b, float32 of size", made, expected, report, plan, n)
        _race(f"{QUEUED} times a+b, float32 of size", made, expected, report, plan, n, QUEUED)


def _race(
    question: str,
    made: Mapping[str, Callable[[], Launch]],
    expected: Any,
    report: Report,
    plan: Plan,
    at: int | None = None,
    times: int = 1,
    tolerance: float = 1e-6,
) -> None:
    race = Race(question, report, at)
    exact = same(expected, tolerance)
    for name, make in made.items():
        check = None if name == FLOOR else lambda result: exact(on_host(result))
        versus = None if name == TORCH else Versus(TORCH)
        race.enter(
            name, lambda make=make: (lambda launch: lambda: wait(launch()))(queued(make(), times)), versus, check
        )
    race.run(plan.pace)


def _waiting(launch: Launch) -> Launch:
    return lambda: wait(launch())


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
    _race("100 sines of 1,000 floats", made, on_host(made[TORCH]()()), report, plan, tolerance=1e-4)


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
    _race(question, made, on_host(native()), report, plan, tolerance=1e-3)


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
    _race(question, made, on_host(native()), report, plan, tolerance=1e-2)


def _call(fn: Callable[..., Any], args: Any) -> Launch:
    call = jax.jit(fn)
    return lambda: call(*args)


def in_jax(tree: Any) -> Any:
    """A tree of tensors as JAX arrays of their own on the same device."""
    return jax.tree.map(lambda tensor: jnp.array(jax.dlpack.from_dlpack(tensor.detach()), copy=True), tree)


if __name__ == "__main__":
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        sys.exit("Needs a GPU that PyTorch can use. T2J_BENCH_DEVICE=cpu only tries the script.")
    main({"size": size, "host": host, "chain": chain, "models": models}, FULL, QUICK)
