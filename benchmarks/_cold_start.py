"""Seconds from `import torch, jax` to the first result, as JSON: `python _cold_start.py CONTESTANT SIZE`.

Run in a fresh process by bench_core.py, which empties the caches.
"""

from __future__ import annotations

import json
import sys
import time

import jax
import torch


def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a + b


def main(contestant: str, size: int) -> None:
    """Time the stages: JAX's own start, the contestant's import, its first jitted call on `size` floats."""
    clock = time.perf_counter
    start = clock()
    x = jax.numpy.ones(size).block_until_ready()
    started = clock()
    fn = add
    if contestant == "t2j":
        import t2j_core

        imported = clock()
        fn = t2j_core.torch2jax(add)
    elif contestant == "wrap_torch2jax":
        import wrap_torch2jax

        imported = clock()
        fn = wrap_torch2jax.torch2jax(add, x, x)
    else:
        imported = clock()
    jax.jit(fn)(x, x).block_until_ready()
    end = clock()
    stages = {"jax_start": started - start, "import": imported - started, "first_call": end - imported}
    sys.stdout.write("\n" + json.dumps({"total": end - start, **stages}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
