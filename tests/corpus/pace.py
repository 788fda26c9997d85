"""The time of a training step, value and gradient of all parameters and inputs, beside native torch's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from agreement import inexact
from t2j_autodiff import t2j
from torch_checks import TorchChecks

WARM_UP = 10  # calls 1, 2, 4 and 8 of a program are checked, which takes longer
ROUNDS = 15
SECONDS = 3.0  # for all rounds; at least three are run


def step(checks: TorchChecks) -> dict[str, float]:
    """The median times in milliseconds, and the median of the ratios of interleaved runs."""
    judge, cts = checks.judge, checks.cotangents(8)
    fn, inputs, moving = judge.leaves(judge.inputs)

    def in_torch() -> None:
        outputs = inexact(judge.run([t.view_as(t) for t in inputs], fn))
        loss = sum((y * ct.conj()).real.sum() for y, ct in zip(outputs, cts, strict=True))
        torch.autograd.grad(loss, moving, allow_unused=True)

    weights = [t2j(c) for c in cts]

    def loss(moving: list[Any], buffers: dict[str, Any], arrays: list[Any]) -> Any:
        ys = checks.smooth(moving, buffers, arrays)
        return sum(jnp.sum((y * w.conj()).real) for y, w in zip(ys, weights, strict=True))

    program, args = jax.jit(jax.value_and_grad(loss)), (checks.moving, checks.variables["buffers"], checks.arrays)

    def in_jax() -> None:
        jax.block_until_ready(program(*args))

    for _ in range(WARM_UP):
        in_jax()
    in_torch()
    return _medians(in_torch, in_jax)


def _medians(in_torch: Callable[[], None], in_jax: Callable[[], None]) -> dict[str, float]:
    rounds: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(rounds) < ROUNDS and (len(rounds) < 3 or time.perf_counter() - start < SECONDS):
        rounds.append((_seconds(in_torch), _seconds(in_jax)))
    native, ours = (statistics.median(times) for times in zip(*rounds, strict=True))
    ratio = statistics.median(b / a for a, b in rounds)
    return {"native_ms": round(1e3 * native, 3), "t2j_ms": round(1e3 * ours, 3), "ratio": round(ratio, 3)}


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
