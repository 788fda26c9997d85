"""Seconds from `import torch, jax` to the first result, as JSON: `python _cold_start.py CONTESTANT SIZE`.

bench_startup.py runs this in a new process with empty caches.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import torch


def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a + b


def imported(contestant: str) -> Any:
    """The contestant's module."""
    if contestant == "t2j":
        import t2j_core as module
    elif contestant == "wrap_torch2jax":
        import wrap_torch2jax as module
    elif contestant == "jax-tvm-ffi":
        import jax_tvm_ffi as module
    elif contestant == "buffer_callback":
        import jax.experimental.buffer_callback as module
    else:
        module = jax
    return module


def wrapped(contestant: str, module: Any, x: jax.Array) -> Callable[..., Any]:
    """A function for `jax.jit`."""
    if contestant == "t2j":
        return module.torch2jax(add)
    if contestant == "wrap_torch2jax":
        return module.torch2jax(add, x, x)
    if contestant == "jax":
        return add
    import _contestants

    makers = {"jax-tvm-ffi": _contestants.tvm_ffi, "buffer_callback": _contestants.buffer_callback}
    return makers.get(contestant, _contestants.pure_callback)(torch.add)


def main(contestant: str, size: int) -> None:
    """Time the stages: JAX's own start, the contestant's import, its first jitted call on `size` floats."""
    clock = time.perf_counter
    start = clock()
    x = jax.numpy.ones(size).block_until_ready()
    started = clock()
    module = imported(contestant)
    ready = clock()
    jax.jit(wrapped(contestant, module, x))(x, x).block_until_ready()
    end = clock()
    stages = {"jax_start": started - start, "import": ready - started, "first_call": end - ready}
    sys.stdout.write("\n" + json.dumps({"total": end - start, **stages}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
