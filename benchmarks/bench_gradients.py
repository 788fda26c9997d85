"""Gradient steps of four models, relative to torch: `python benchmarks/bench_gradients.py [--quick]`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from _harness import Pace, Race, Report, Versus
from _script import main

# The harness comes first because it pins the threads before torch loads.
# isort: split
import jax
import torch
from _contestants import (
    COMPILED,
    JNP,
    PEER,
    TORCH,
    TORCH_COMPILE,
    as_asked,
    compiled,
    jitted,
    peer,
    same,
    t2j_autodiff,
)
from _models import Loss, Params, block, convnet, in_jax, loss_of, minilm, mlp, mlp_in_jnp, native_step

FULL, QUICK = Pace(11), Pace(2, 0.004, 0.02)
QUICK_MODELS = 2
Task = tuple[Loss, Params, tuple[torch.Tensor, ...]]


def task(make: Callable[[], torch.nn.Module], *shape: int) -> Task:
    """A model of this file with a random batch."""
    torch.manual_seed(0)
    loss, params = loss_of(make())
    return loss, params, (torch.randn(shape),)


# Name: a function that makes the model, the target for t2j / torch, the same loss in jnp.
MODELS: dict[str, tuple[Callable[[], Task], float | None, Any]] = {
    "MLP 4 x 1024, batch 256": (lambda: task(functools.partial(mlp, 1024, 4), 256, 1024), 1.20, mlp_in_jnp),
    "convnet, 32 x 3 x 32 x 32": (lambda: task(convnet, 32, 3, 32, 32), 1.10, None),
    "transformer block, 32 x 64 x 256": (lambda: task(block, 32, 64, 256), 1.10, None),
    "MiniLM, 16 x 18 tokens": (minilm, 1.05, None),
}


def gradients(name: str, report: Report, pace: Pace) -> None:
    """Jitted `value_and_grad` of one model, relative to torch's forward and backward."""
    if pace is QUICK and name not in list(MODELS)[:QUICK_MODELS]:
        return
    make, target, jnp_loss = MODELS[name]
    made = make()
    race = _gradients(Race(f"value_and_grad, {name}", report), made, target, jnp_loss)
    if pace is not QUICK:
        _with_compiler(race, made)
    race.run(pace)
    torch.compiler.reset()


def _gradients(race: Race, made: Task, target: float | None, jnp_loss: Any) -> Race:
    loss, params, inputs = made
    native = native_step(loss, params, *inputs)
    arrays = in_jax((params, *inputs))
    check = same(native(), 1e-3)

    def enter(name: str, make: Callable[[], Callable[..., Any]], goal: float | None = None, asked: Any = None) -> None:
        step = lambda: jitted(jax.value_and_grad(make()), *arrays)
        race.enter(name, (lambda: asked(step())) if asked else step, Versus(TORCH, goal), check)

    race.enter(TORCH, lambda: native)
    enter("t2j auto", lambda: t2j_autodiff(loss), target)
    enter("t2j recompute", lambda: t2j_autodiff(loss, residuals="recompute"))
    enter("t2j graph", lambda: t2j_autodiff(loss, residuals="graph"), asked=as_asked)
    enter(PEER, lambda: peer(loss, params, *inputs))
    if jnp_loss is not None:
        enter(JNP, lambda: jnp_loss)
    return race


def _with_compiler(race: Race, made: Task) -> None:
    """The contestants that compile with torch; compiling takes long."""
    loss, params, inputs = made
    arrays = in_jax((params, *inputs))
    check = same(native_step(loss, params, *inputs)(), 1e-3)
    race.enter(TORCH_COMPILE, lambda: native_step(torch.compile(loss), params, *inputs), Versus(TORCH), check)
    step = lambda: as_asked(jitted(jax.value_and_grad(compiled(loss)), *arrays))
    race.enter(COMPILED, step, Versus(TORCH), check)


if __name__ == "__main__":
    keys = {name: name.partition(",")[0].replace(" ", "-").lower() for name in MODELS}
    main({key: functools.partial(gradients, name) for name, key in keys.items()}, FULL, QUICK)
