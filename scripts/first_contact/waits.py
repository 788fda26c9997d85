"""What waits for the GPU and which CUDA calls one call makes, counted in profiles."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import torch
from _questions import check, question
from t2j_autodiff import torch2jax

CALLS = 5
WAITING = re.compile(r"cu(da)?(Stream|Device|Event|Ctx)Synchronize")


def loss(x: torch.Tensor) -> torch.Tensor:
    """A function whose derivative needs saved tensors."""
    return (torch.sin(x) * x).sum()


def programs() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Jitted functions and their arguments."""
    x, key = jnp.ones(1 << 20), jax.random.key(0)
    gradient = lambda residuals: jax.jit(jax.value_and_grad(torch2jax(loss, residuals=residuals)))
    return {
        "forward": (jax.jit(torch2jax(torch.sin)), (x,)),
        "gradient, auto": (gradient("auto"), (x,)),
        "gradient, recompute": (gradient("recompute"), (x,)),
        "gradient, graph": (gradient("graph"), (x,)),
        "gradient, not paired": (jax.jit(jax.grad(jax.jit(torch2jax(loss)))), (x,)),
        "rng=True": (jax.jit(torch2jax(lambda x: x + torch.rand_like(x), rng=True)), (key, x)),
    }


@question(90, needs_gpu=True)
def what_waits() -> dict[str, Any]:
    """The waits of one call beyond those of a program of jnp. Only a gradient that is not paired may have some."""
    base = cuda_calls(jax.jit(lambda x: jnp.sin(x) + 1), (jnp.ones(1 << 20),))
    counts = {name: cuda_calls(*program) for name, program in programs().items()}
    waits = {name: (waits_in(count) - waits_in(base)) / CALLS for name, count in counts.items()}
    wrong = {name: n for name, n in waits.items() if n > 0 and name != "gradient, not paired"}
    check(not wrong, "these wait", wrong)
    each = {name: {key: n / CALLS for key, n in count.items()} for name, count in {"jnp": base, **counts}.items()}
    return {"waits in a call": waits, "CUDA calls in a call": each}


def waits_in(count: Counter[str]) -> int:
    """How many of the CUDA calls wait."""
    return sum(n for name, n in count.items() if WAITING.match(name))


def cuda_calls(f: Any, args: tuple[Any, ...]) -> Counter[str]:
    """The CUDA calls while a program is called CALLS times and runs, and nobody asks for a result."""
    with torch.profiler.profile():  # the first profile waits more often than later ones
        for _ in range(2):  # these calls compare their arguments with copies
            jax.block_until_ready(f(*args))
    with torch.profiler.profile() as profile:
        held = [f(*args) for _ in range(CALLS)]
        while not all(leaf.is_ready() for leaf in jax.tree.leaves(held)):  # polls without a CUDA call that waits
            pass
    return Counter({e.key: e.count for e in profile.key_averages() if re.match(r"cu(da)?[A-Z]", e.key)})
