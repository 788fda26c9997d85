"""A batch of 1 to 1024 examples with `jax.vmap`: `python benchmarks/bench_vmap.py [--quick]`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from _harness import Call, Pace, Race, Report, Versus
from _script import main

# The harness comes first because it pins the threads before torch loads.
# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import torch
from _contestants import (
    COMPILED,
    JNP,
    PEER,
    TVM,
    as_asked,
    buffer_callback,
    calls,
    compiled,
    normal,
    peer,
    pure_callback,
    same,
    t2j_autodiff,
    tensors,
    tvm_ffi,
)

Paces = dict[int, Pace]
FULL = {4**k: Pace(31) for k in range(6)}
QUICK = {n: Pace(5, 0.004, 0.02) for n in (1, 16, 256)}
WIDTH = 64
AS_TORCH = 64  # the batch at which t2j should take no longer than torch
TORCH_FUNC = "torch.func.vmap"


def layer(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x @ w)


def layer_into(x: torch.Tensor, w: torch.Tensor, *, out: torch.Tensor) -> None:
    torch.tanh(x @ w, out=out)


def batches(report: Report, paces: Paces) -> None:
    """One layer on each example of a batch."""
    for n, pace in paces.items():
        _batch(report, n, pace)


def _batch(report: Report, n: int, pace: Pace) -> None:
    x, w = normal((n, WIDTH), (WIDTH, WIDTH))
    tx, tw = tensors(x, w)
    native = functools.partial(torch.func.vmap(layer, (0, None)), tx, tw)
    check = same(np.asarray(native()), 1e-4)
    race, versus = Race(f"vmap of tanh(x @ w), width {WIDTH}, batch", report, n), Versus(TORCH_FUNC)

    def batched(fn: Callable[..., Any]) -> Call:
        return calls(jax.jit(jax.vmap(fn, (0, None))), x, w)

    one_by_one = {"vmap_method": "sequential"}
    race.enter(TORCH_FUNC, lambda: native, None, check)
    ours = Versus(TORCH_FUNC, 1.0) if n == AS_TORCH else versus
    race.enter("t2j", lambda: batched(t2j_autodiff(layer)), ours, check)
    race.enter("t2j sequential", lambda: batched(t2j_autodiff(layer, **one_by_one)), versus, check)
    race.enter(COMPILED, lambda: as_asked(batched(compiled(layer))), versus, check)
    race.enter(PEER, lambda: batched(peer(layer, x[0], w)), versus, check)
    race.enter(TVM, lambda: batched(tvm_ffi(layer_into, **one_by_one)), versus, check)
    race.enter("buffer_callback", lambda: batched(buffer_callback(layer_into, **one_by_one)), versus, check)
    race.enter("pure_callback", lambda: batched(pure_callback(layer, **one_by_one)), versus, check)
    race.enter(JNP, lambda: batched(lambda x, w: jnp.tanh(x @ w)), versus, check)
    race.run(pace)


if __name__ == "__main__":
    main({"vmap": batches}, FULL, QUICK)
