"""Functions that torch's compiler compiles."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import torch
from _device import DEVICE, call, close, microseconds, wait
from _questions import question
from t2j_autodiff import module2jax


@question(90)
def compiled_functions() -> dict[str, Any]:
    """`compile=True`: the forward and the gradients of a module against torch, the first call and later ones."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.LayerNorm(64), torch.nn.Linear(64, 8)
    module = torch.nn.Sequential(*layers).to(DEVICE)
    x = torch.randn(16, 32, device=DEVICE)
    names, weights = zip(*module.named_parameters(), strict=True)
    loss = module(x).square().mean()
    expected = {"forward": module(x), "gradient": dict(zip(names, torch.autograd.grad(loss, weights), strict=True))}
    return {f"compile={choice}": measured(module, x, expected, choice) for choice in (True, False)}


def measured(module: torch.nn.Module, x: torch.Tensor, expected: dict[str, Any], is_compiled: bool) -> dict[str, Any]:
    """Times of the forward and the gradients, and what is compiled."""
    apply, variables = module2jax(module, compile=is_compiled)
    forward = lambda params, x: apply({"params": params, "buffers": {}}, x)
    gradient = jax.grad(lambda params, x: jnp.square(forward(params, x)).mean())
    array, found = jnp.asarray(x.cpu().numpy()), {}
    for name, fn in {"forward": forward, "gradient": gradient}.items():
        launch, start = call(fn, variables["params"], array), time.perf_counter()
        close(wait(launch()), expected[name], 1e-4)
        first = round(time.perf_counter() - start, 2)
        found[name] = {"first call s": first, **microseconds(launch, 50)}
    return {**found, "explain": [line.strip() for line in apply.explain().splitlines() if "compiled" in line]}
