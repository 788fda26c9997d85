"""The memory of both allocators, and what happens without memory."""

from __future__ import annotations

import threading
import time
from typing import Any

import jax
import torch
from _device import close, error_of, normal
from _questions import IS_GPU, check, question
from t2j_autodiff import last_error, torch2jax
from t2j_core import testing

MIB = 1 << 20


def in_use() -> dict[str, float]:
    """MiB in use. XLA frees on a thread of its own, so the least of some reads counts."""
    reads = []
    for _ in range(5):
        torch.cuda.synchronize()
        of_jax = jax.devices()[0].memory_stats()["bytes_in_use"]
        reads.append((of_jax, torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
        time.sleep(0.02)
    least = (round(min(read) / MIB, 2) for read in zip(*reads, strict=True))
    return dict(zip(("JAX", "torch", "torch, reserved"), least, strict=True))


@question(60, needs_gpu=True)
def memory_of_many_calls() -> dict[str, Any]:
    """Memory after 100 calls, after 2,000, and after calls of six threads that end, one after the other."""
    gradient = jax.jit(jax.grad(torch2jax(lambda x: torch.tanh(x @ x).sum())))
    x, found = normal(256, 256), []

    def use(calls: int) -> None:
        for _ in range(calls):
            y = gradient(x)
        y.block_until_ready()
        del y
        found.append(in_use())

    use(100)
    use(2000)
    for _ in range(6):
        thread = threading.Thread(target=use, args=(50,))
        thread.start()
        thread.join()
    grown = [key for key in found[0] if found[1][key] > found[0][key] + 1]
    check(not grown, "memory grows with calls", found[:2])
    grown = [key for key in found[0] if found[-1][key] > found[2][key] + 1]
    check(not grown, "memory grows with threads", found[2:])
    return {"100 calls, 2,000 calls, threads": found, "MiB of the GPU": torch.cuda.mem_get_info()[1] / MIB}


@question(60)
def out_of_memory() -> dict[str, str]:
    """Torch's error reaches the user, and the calls after it are right."""
    size = [8]
    f = torch2jax(lambda x: torch.zeros(size[0], device=x.device)[:8] + x, output_shapes=(8,))
    kind = torch.OutOfMemoryError if IS_GPU else RuntimeError
    x, found = normal(8), {}
    for name, run in {"eager": f, "jit": jax.jit(f)}.items():
        close(run(x), x)
        size[0] = 1 << 46  # 256 TB
        found[name] = error_of(lambda run=run: run(x))
        check(isinstance(last_error(), kind), f"{name}: the last error is", repr(last_error()))
        size[0] = 8
        close(run(x), x)
    testing.assert_nothing_escaped()
    return found
