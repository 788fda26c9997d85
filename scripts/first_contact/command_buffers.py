"""XLA's CUDA graphs ("command buffers") around calls, and with calls inside: `command_buffer=True`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch
from _device import DEVICE, close, error_of, microseconds, normal
from _questions import NOT_HERE, check, question
from t2j_autodiff import torch2jax

HAS_OPTION = "command_buffer" in inspect.signature(torch2jax).parameters
inside = partial(torch2jax, **({"command_buffer": True} if HAS_OPTION else {}))
graphs = partial(jax.jit, compiler_options={"xla_gpu_graph_min_graph_size": 1})  # by default 5 operations make a graph
N = 1 << 16


def needs_option(ask: Callable[[], object]) -> Callable[[], object]:
    """A question that this version cannot be asked unless it has the option."""
    ask_or_not: Callable[[], object] = lambda: ask() if HAS_OPTION else NOT_HERE
    ask_or_not.__name__ = ask.__name__
    return ask_or_not


@question(30)
def graphs_around_calls() -> str:
    """XLA makes graphs of its own kernels around an ordinary call."""
    program = lambda f, x: jnp.cos(jnp.sin(f(jnp.tanh(x) @ x)) @ x) @ x
    f, g = graphs(partial(program, torch2jax(torch.exp))), jax.jit(partial(program, jnp.exp))
    for seed in range(20):
        x = normal(64, 64, seed=seed) / 64
        close(f(x), g(x), 1e-3)
    return "right 20 times"


@question(40, needs_gpu=True)
@needs_option
def graphs_with_donated_arguments() -> dict[str, Any]:
    """Values of 50 calls. The function's Python runs until all addresses are known, and then no more."""
    runs, counts = [], []

    def halve(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        runs.append(1)
        return 0.5 * w + torch.sin(x)

    program = lambda f, w, x: 1.5 * f(jnp.cos(w), x)
    f = graphs(partial(program, inside(halve)), donate_argnums=0)
    g = jax.jit(partial(program, lambda w, x: 0.5 * w + jnp.sin(x)))
    x, w, expected = normal(N), jnp.zeros(N), jnp.zeros(N)
    for _ in range(50):
        w, expected = f(w, x), g(expected, x)
        close(w, expected, 1e-4)
        counts.append(len(runs))
    check(counts[-1] == counts[29], "Python still runs in the last 20 calls", counts)
    return {"runs of Python after each call": counts}


@question(40, needs_gpu=True)
@needs_option
def memory_of_graphs() -> str:
    """Tensors that torch allocates between replays do not lie over those inside the graph."""
    f = graphs(lambda x: jnp.cos(inside(lambda x: (x.sin() * 2 + 1).exp().cumsum(0) / N + x.sum())(jnp.sin(x))))
    g = jax.jit(lambda x: jnp.cos((jnp.exp(jnp.sin(y := jnp.sin(x)) * 2 + 1)).cumsum(0) / N + y.sum()))
    for seed in range(20):
        x = normal(N, seed=seed)
        close(f(x), g(x), 1e-2)
        sizes = [N >> k for k in range(0, 14, 2)] * 3
        taken = [torch.full((size,), float("nan"), device=DEVICE) for size in sizes]
        del taken
    return "right 20 times"


@question(40, needs_gpu=True)
@needs_option
def products_in_two_graphs() -> str:
    """Two calls that use cuBLAS, whose workspace belongs to a stream, in one program and in two."""
    first, second = inside(lambda x: torch.tanh(x @ x)), inside(lambda x: x.mT @ x)
    both, alone = graphs(lambda x: second(jnp.sin(first(jnp.cos(x))))), graphs(lambda x: first(jnp.cos(x)))
    for seed in range(10):
        x = normal(256, 256, seed=seed) / 16
        tensor = torch.tensor(jax.device_get(x), device=DEVICE)
        product = torch.tanh(tensor.cos() @ tensor.cos())
        close(alone(x), product, 1e-2)
        sine = torch.sin(product)
        close(both(x), sine.mT @ sine, 1e-2)
    return "right 10 times"


@question(40, needs_gpu=True)
@needs_option
def a_wait_inside_a_graph() -> str:
    """`.item()` cannot be captured: the error says so, and calls work after it."""
    item = inside(lambda x: x * x.sum().item(), output_shapes=jax.ShapeDtypeStruct((8,), jnp.float32))
    x = normal(8)
    found = error_of(lambda: graphs(lambda x: item(jnp.cos(x)))(x))
    check("CommandBufferError" in found, "the error is", found)
    for f in (torch2jax(torch.sin), inside(torch.sin)):
        close(graphs(lambda x, f=f: f(jnp.cos(x)))(x), jnp.sin(jnp.cos(x)))
    return found


@question(40, needs_gpu=True)
@needs_option
def cost_of_calls_in_graphs() -> dict[str, Any]:
    """Twenty small operations, as an ordinary call and inside a graph."""

    def many(x: torch.Tensor) -> torch.Tensor:
        for _ in range(20):
            x = torch.sin(x)
        return x

    x = normal(1000)
    program = lambda f: graphs(lambda x: jnp.cos(f(jnp.cos(x))))
    programs = {"plain": program(torch2jax(many)), "command_buffer=True": program(inside(many))}
    return {name: microseconds(lambda run=run: run(x)) for name, run in programs.items()}
