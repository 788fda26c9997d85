"""The device that the questions are about, and how they compare values and measure times on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from _questions import IS_GPU

DEVICE = torch.device("cuda" if IS_GPU else "cpu")
if not torch.empty(0, device=DEVICE).is_cuda == IS_GPU == (jax.default_backend() == "gpu"):
    raise RuntimeError(f"JAX runs on {jax.default_backend()} and PyTorch on {DEVICE}.")
jax.config.update("jax_default_matmul_precision", "highest")  # as torch computes

Launch = Callable[[], Any]
"""Queues work and returns its result, which may not be ready."""


def close(result: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Compare two trees with the same leaves, arrays or tensors."""
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True)
    for mine, other in pairs:
        np.testing.assert_allclose(on_host(mine), on_host(other), rtol=tolerance, atol=tolerance)


def on_host(leaf: Any) -> np.ndarray:
    """An array or a tensor in NumPy."""
    return leaf.detach().cpu().numpy() if isinstance(leaf, torch.Tensor) else np.asarray(leaf)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Random numbers as a JAX array."""
    return jax.random.normal(jax.random.key(seed), shape)


def delay(cycles: int = 20_000_000) -> None:
    """Occupy torch's current stream for about 10 ms; do nothing on the CPU."""
    if IS_GPU:
        torch.cuda._sleep(cycles)


def wait(result: Any) -> Any:
    """Wait until the queued work is done, and return the result."""
    jax.block_until_ready([leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)])
    if IS_GPU:
        torch.cuda.synchronize()
    return result


def microseconds(launch: Launch, calls: int = 200) -> dict[str, float]:
    """The median time until a call returns, and the time of a call in a row of calls that is waited for at its end."""
    calls = calls if IS_GPU else max(calls // 10, 2)  # figures of a CPU say nothing here
    for _ in range(9):  # t2j checks calls 1, 2, 4 and 8
        wait(launch())
    taken, start = [], time.perf_counter()
    for _ in range(calls):
        begin = time.perf_counter()
        result = launch()
        taken.append(time.perf_counter() - begin)
    wait(result)
    whole = (time.perf_counter() - start) / calls
    return {"host us": round(1e6 * statistics.median(taken), 1), "in a row us": round(1e6 * whole, 1)}


def error_of(launch: Launch) -> str:
    """The exception of a call that must fail."""
    try:
        jax.block_until_ready(launch())
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    raise AssertionError("the call did not fail")


def call(fn: Callable[..., Any], *args: Any) -> Launch:
    """A call of a jitted function."""
    jitted = jax.jit(fn)
    return lambda: jitted(*args)
