"""The memory and functions that remain after many wraps, as JSON: `python _lifetime.py CONTESTANT CHECKPOINT...`.

Each wrap is a new function that is jitted, called once and dropped. bench_startup.py runs this in a new process.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import jax
import torch

Wrap = Callable[[Callable[..., torch.Tensor]], Callable[..., jax.Array]]


def wrapper(contestant: str, x: jax.Array) -> Wrap:
    """The contestant's way of wrapping a function of `x`."""
    if contestant == "t2j":
        import t2j_core

        return t2j_core.torch2jax
    import wrap_torch2jax

    return lambda fn: wrap_torch2jax.torch2jax(fn, x)


def wrap_and_call(wrap: Wrap, x: jax.Array, number: int) -> weakref.ref[Callable[..., torch.Tensor]]:
    """Wrap, jit and call a new function once, and return a weak reference to it."""
    fn = lambda a: a + number
    jax.jit(wrap(fn))(x).block_until_ready()
    return weakref.ref(fn)


def rss_mb() -> float:
    """The current resident memory, or its peak if the system does not report the current value."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def main(contestant: str, checkpoints: list[int]) -> None:
    """Wrap functions up to the last checkpoint; record memory at each one and the functions alive at the end."""
    x = jax.numpy.ones(8)
    wrap = wrapper(contestant, x)
    refs, memory = [], {}
    start = time.perf_counter()
    for number in range(1, checkpoints[-1] + 1):
        refs.append(wrap_and_call(wrap, x, number))
        if number in checkpoints:
            gc.collect()
            memory[number] = rss_mb()
    seconds = (time.perf_counter() - start) / checkpoints[-1]
    alive = sum(ref() is not None for ref in refs)
    left = {"alive": alive, "rss_mb": memory, "seconds_per_wrap": seconds}
    sys.stdout.write("\n" + json.dumps(left) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], [int(argument) for argument in sys.argv[2:]])
