"""The cost of derivatives and batches through t2j_autodiff: `python benchmarks/bench_autodiff.py [--quick]`."""

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
import torch
from _contestants import PEER, calls, peer, same, t2j_autodiff
from _models import in_jax, loss_of, mlp

FULL, QUICK = Pace(31), Pace(3, 0.004, 0.02)


def tiny_grad(report: Report, pace: Pace) -> None:
    """Jitted `grad` of a tiny function: recomputing is faster than keeping a graph."""
    race = Race("grad of a tiny function, 8 x 8", report)

    def fn(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ x).sum()

    x = jnp.eye(8) * 0.3
    for residuals, goal in (("recompute", None), ("auto", Versus("t2j recompute", 1.05))):
        race.enter(
            f"t2j {residuals}", lambda r=residuals: calls(jax.jit(jax.grad(t2j_autodiff(fn, residuals=r))), x), goal
        )
    race.enter(PEER, lambda: calls(jax.jit(jax.grad(peer(fn, torch.eye(8)))), x), Versus("t2j recompute"))
    race.run(pace)


def per_example_gradients(report: Report, pace: Pace) -> None:
    """`vmap(grad)` over a batch of 64."""
    for width, target in ((32, 1 / 10), (256, 1 / 3)):
        _per_example_gradients(Race(f"vmap(grad), batch 64, MLP 3 x {width}", report), width, target).run(pace)


def _per_example_gradients(race: Race, width: int, target: float) -> Race:
    torch.manual_seed(0)
    loss, params = loss_of(mlp(width, 3))
    x = torch.randn(64, width)
    arrays, x_jax = in_jax((params, x))
    native = torch.func.vmap(torch.func.grad(loss), (None, 0))
    check = same(native(params, x), 1e-3)

    def batched(f: Callable[..., Any]) -> Call:
        return calls(jax.jit(jax.vmap(jax.grad(f), (None, 0))), arrays, x_jax)

    race.enter(PEER, lambda: batched(peer(loss, params, x[0])), check=check)
    race.enter("torch.func", lambda: functools.partial(native, params, x), Versus(PEER))
    race.enter("t2j auto", lambda: batched(t2j_autodiff(loss)), Versus(PEER, target), check)
    race.enter("t2j sequential", lambda: batched(t2j_autodiff(loss, vmap_method="sequential")), Versus(PEER), check)
    return race


def forward_mode(report: Report, pace: Pace) -> None:
    """`jvp` and Hessian-vector products, relative to `torch.func`."""
    torch.manual_seed(0)
    loss, params = loss_of(mlp(512, 4))
    x = torch.randn(256, 512)
    moved = {key: torch.randn_like(p) for key, p in params.items()}
    arrays, x_jax, moved_jax = in_jax((params, x, moved))
    f = t2j_autodiff(loss)

    race = Race("jvp, MLP 4 x 512, batch 256", report)
    native = functools.partial(torch.func.jvp, lambda p: loss(p, x), (params,), (moved,))
    race.enter("torch.func", lambda: native)
    pushed = jax.jit(lambda p, x, dp: jax.jvp(lambda p: f(p, x), (p,), (dp,)))
    race.enter("t2j", lambda: calls(pushed, arrays, x_jax, moved_jax), Versus("torch.func", 1.5), same(native(), 1e-3))
    race.run(pace)

    race = Race("Hessian-vector product, forward over reverse", report)

    def native() -> Any:
        return torch.func.jvp(torch.func.grad(lambda p: loss(p, x)), (params,), (moved,))[1]

    race.enter("torch.func", lambda: native)
    hvp = jax.jit(lambda p, x, dp: jax.jvp(jax.grad(lambda p: f(p, x)), (p,), (dp,))[1])
    race.enter("t2j", lambda: calls(hvp, arrays, x_jax, moved_jax), Versus("torch.func", 1.2), same(native(), 1e-3))
    race.run(pace)


def eager_grad(report: Report, pace: Pace) -> None:
    """Eager `jax.grad` of a model with 10 leaves."""
    torch.manual_seed(0)
    loss, params = loss_of(mlp(32, 5))
    x = torch.randn(16, 32)
    arrays, x_jax = in_jax((params, x))
    race = Race("eager grad, 10 leaves", report)
    race.enter("t2j jitted", lambda: calls(jax.jit(jax.grad(t2j_autodiff(loss))), arrays, x_jax))
    race.enter(PEER, lambda: calls(jax.grad(peer(loss, params, x)), arrays, x_jax), Versus("t2j jitted"))
    race.enter("t2j", lambda: calls(jax.grad(t2j_autodiff(loss)), arrays, x_jax), Versus("t2j jitted"))
    race.run(pace)


if __name__ == "__main__":
    main(
        {
            "tiny": tiny_grad,
            "per-example": per_example_gradients,
            "forward": forward_mode,
            "eager": eager_grad,
        },
        FULL,
        QUICK,
    )
