"""Calls on many threads. The answer to `end` tells whether the process can end afterwards."""

from __future__ import annotations

import threading
from typing import Any

import jax
import jax.numpy as jnp
import torch
from _device import close, normal
from _questions import check, question
from t2j_autodiff import torch2jax
from t2j_core import testing

THREADS, CALLS = 4, 50


seen: set[int] = set()  # threads that ran a function


@question(60)
def threads_of_python() -> dict[str, Any]:
    """Values and gradients on four threads at once, which then end."""

    def loss(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        seen.add(threading.get_ident())
        return torch.tanh(x @ w).sum()

    in_jnp = lambda x, w: jnp.tanh(x @ w).sum()
    programs = jax.jit(jax.value_and_grad(torch2jax(loss))), jax.jit(jax.value_and_grad(in_jnp))
    return together(*programs, 16, jax.devices()[0])


@question(60)
def threads_of_xla() -> dict[str, Any]:
    """Programs with products on the CPU, which XLA runs on its own threads. These keep a Python thread state."""

    def scaled(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        seen.add(threading.get_ident())
        return 2 * x * w.sum()

    f = torch2jax(scaled)
    programs = jax.jit(lambda x, w: f(x @ w, w)), jax.jit(lambda x, w: 2 * (x @ w) * w.sum())
    found = together(*programs, 256, jax.devices("cpu")[0])
    check(found["threads of XLA"] > 0, "XLA ran all calls on the threads of their callers")
    return found


def together(f: Any, g: Any, width: int, device: jax.Device) -> dict[str, Any]:
    """Call `f` on all threads and compare with `g`, on a device."""
    wrong: list[str] = []
    seen.clear()
    start = threading.Barrier(THREADS)

    def work(seed: int) -> None:
        try:
            x, w = normal(8, width, seed=seed), normal(width, width, seed=seed) / width
            x, w = jax.device_put((x, w), device)
            start.wait(30)
            for _ in range(CALLS):
                close(f(x, w), g(x, w), 1e-2)
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}"[:500])

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    callers = {worker.start() or worker.ident for worker in workers}
    for worker in workers:
        worker.join()
    check(not wrong, "wrong", wrong)
    testing.assert_nothing_escaped()
    return {"calls": THREADS * CALLS, "threads of XLA": len(seen - callers - {threading.get_ident()})}
