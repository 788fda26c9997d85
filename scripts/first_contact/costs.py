"""What calls cost the host, against the same in torch alone and in jnp."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import torch
from _device import DEVICE, Launch, call, close, microseconds
from _questions import IS_GPU, question
from t2j_autodiff import module2jax, torch2jax

CHAINED = 100
LAYERS = 50 if IS_GPU else 5  # each has two parameters
WIDTH = 2048 if IS_GPU else 64  # of matrices whose products take time


def chain(f: Any, x: Any, times: int = CHAINED) -> Any:
    """Apply a function many times."""
    for _ in range(times):
        x = f(x)
    return x


@question(40)
def cost_of_calls() -> dict[str, Any]:
    """One call, a hundred in a program, and 64 results."""
    x, tensor, sine = jnp.ones(1000), torch.ones(1000, device=DEVICE), torch2jax(torch.sin)
    many = torch2jax(lambda x: tuple(x + i for i in range(64)))
    launches: dict[str, tuple[Launch, int]] = {
        "1 call": (call(sine, x), 300),
        "1 call, jnp": (call(jnp.sin, x), 300),
        "1 call, torch": (lambda: torch.sin(tensor), 300),
        "100 calls": (call(lambda x: chain(sine, x), x), 20),
        "100 calls, torch": (lambda: chain(torch.sin, tensor), 20),
        "64 results": (call(many, x), 30),
        "64 results, torch": (lambda: [tensor + i for i in range(64)], 30),
    }
    return {name: microseconds(*launch) for name, launch in launches.items()}


@question(20, needs_gpu=True)
def cost_of_streams() -> dict[str, float]:
    """Entering XLA's stream and leaving it, without a call."""
    from t2j_core._run import streams

    pointer = torch.cuda.Stream().cuda_stream
    return microseconds(lambda: streams.leave(streams.enter(pointer, 0)), 1000)


@question(60)
def cost_of_leaves() -> dict[str, Any]:
    """A loss and its gradients for the parameters of 50 layers of little work."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(LAYERS)]).to(DEVICE)
    x = torch.randn(16, 16, device=DEVICE)
    names, weights = zip(*module.named_parameters(), strict=True)

    def native() -> Any:
        loss = module(x).square().mean()
        return loss, dict(zip(names, torch.autograd.grad(loss, weights), strict=True))

    expected, found = native(), {"torch": microseconds(native, 50)}
    for residuals in ("auto", "graph"):
        apply, variables = module2jax(module, residuals=residuals)
        step = jax.value_and_grad(lambda p, x, apply=apply: jnp.square(apply({"params": p, "buffers": {}}, x)).mean())
        launch = call(step, variables["params"], jnp.asarray(x.cpu().numpy()))
        close(launch(), expected, 1e-3)
        found[f"residuals={residuals}"] = microseconds(launch, 50)
    return found


@question(60)
def cost_of_kept_graphs() -> dict[str, Any]:
    """The gradient of one call, and of twelve in a row, for each kind of residuals."""
    x, found = jnp.ones((WIDTH, WIDTH)) / WIDTH, {}
    for times in (1, 12):
        for residuals in ("auto", "recompute", "graph"):
            layer = torch2jax(lambda y, w: torch.tanh(y @ w), residuals=residuals)
            loss = lambda w, f=layer, n=times: chain(lambda y: f(y, w), w, n).sum()
            found[f"in a row: {times}, residuals={residuals}"] = microseconds(call(jax.grad(loss), x), 10)
    return found


@question(30)
def cost_of_keys() -> dict[str, Any]:
    """Dropout with a key, and without: whether `rng=True` ends the host's lead over the GPU."""
    shape = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
    dropout = lambda x: torch.nn.functional.dropout(x @ x, 0.5)
    x, key = jnp.ones(shape.shape), jax.random.key(0)
    with_key = torch2jax(dropout, rng=True, output_shapes=shape)
    without = torch2jax(dropout, output_shapes=shape)
    return {"rng=True": microseconds(call(with_key, key, x), 30), "rng=False": microseconds(call(without, x), 30)}
