"""What a process holds, and whether it grows."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import torch
from t2j_autodiff import clear_residuals
from t2j_core import Size, testing, torch2jax

# How much each may grow from the second quarter of a run to the last. XLA and the allocator keep some memory, and XLA
# starts threads when it first needs them. t2j keeps the last 16 exceptions of a thread that nobody has asked for, such
# as those of interrupted eager calls, and with each its function (`_run.originals._MOST_OF_THREAD`).
MOST_GROWTH = {"resident MiB": 150, "threads": 8, "files": 8, "live functions": 16}

KEPT_ERRORS = int(os.environ.get("T2J_KEPT_ERRORS", "16"))


def fail(x: torch.Tensor) -> torch.Tensor:
    """Raise."""
    raise LookupError("on purpose")


failing = torch2jax(fail, output_shapes=Size(1))


def forget_errors() -> None:
    """Let other errors take the place of those that are kept, and with them the functions in their tracebacks."""
    call = jax.jit(failing)
    for _ in range(KEPT_ERRORS):
        for one in (call, failing):
            with contextlib.suppress(LookupError, ValueError, jax.errors.JaxRuntimeError):
                jax.block_until_ready(one(jnp.ones(1)))


def held() -> dict[str, float]:
    """What the process holds after all caches of programs are empty."""
    forget_errors()
    jax.clear_caches()
    clear_residuals()
    testing.collect(passes=2)
    counted = testing.counters()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {
        "resident MiB": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20),
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
        "live functions": testing.live_functions(),
        "live sites": counted["live_sites"],
        "escaped calls": counted["escaped_calls"],
    }


def growth(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """How much more there is in the last quarter of the samples than in the second, by medians."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]
    return {name: median(late, name) - median(early, name) for name in samples[0]}


def median(samples: Sequence[Mapping[str, float]], name: str) -> float:
    """The median of one figure."""
    return statistics.median(sample[name] for sample in samples)


def grown_too_much(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What grew by more than it may."""
    return {name: by for name, by in growth(samples).items() if by > MOST_GROWTH.get(name, 0)}
