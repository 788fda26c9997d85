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
import numpy as np
import torch
from _contestants import (
    AFTER_FLOOR,
    COMPILED,
    FLOOR,
    JNP,
    PEER,
    TORCH,
    after_floor,
    as_asked,
    calls,
    compiled,
    floor,
    jitted,
    peer,
    same,
    t2j_autodiff,
)
from _models import in_jax, loss_of, mlp, mlp_in_jnp, native_step

FULL, QUICK = Pace(31), Pace(3, 0.004, 0.02)
BY_HAND = "pure_callback, batched by hand"


def tiny_grad(report: Report, pace: Pace) -> None:
    """Jitted `grad` of a tiny function, where recomputing is faster than keeping a graph."""
    race, versus = Race("grad of a tiny function, 8 x 8", report), Versus(TORCH)

    def fn(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ x).sum()

    x = jnp.eye(8) * 0.3
    leaf = torch.tensor(np.asarray(x)).requires_grad_()
    native = lambda: torch.autograd.grad(fn(leaf), leaf)
    check = same(native(), 1e-5)

    def differentiated(make: Callable[..., Any], **options: Any) -> Callable[[], Call]:
        return lambda: calls(jax.jit(jax.grad(make(fn, **options))), x)

    race.enter(TORCH, lambda: native)
    race.enter("t2j auto", differentiated(t2j_autodiff), Versus(TORCH, 1.6), check)
    race.enter("t2j recompute", differentiated(t2j_autodiff, residuals="recompute"), versus, check)
    race.enter(COMPILED, lambda: as_asked(differentiated(compiled)()), versus, check)
    race.enter(PEER, lambda: calls(jax.jit(jax.grad(peer(fn, torch.eye(8)))), x), versus, check)
    race.enter(JNP, lambda: calls(jax.jit(jax.grad(lambda x: jnp.tanh(x @ x).sum())), x), versus, check)
    empty = jitted(floor, x)
    race.enter(FLOOR, lambda: empty, versus)
    race.enter(AFTER_FLOOR, lambda: after_floor(empty, native), versus, check)
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


def tiny_network(report: Report, pace: Pace) -> None:
    """`vmap(value_and_grad)` of a tiny network, relative to a `pure_callback` that gets the batch."""
    torch.manual_seed(0)
    loss, params = loss_of(torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)))
    x = torch.randn(4, 2)
    arrays, x_jax = in_jax((params, x))
    race, versus = Race("vmap(value_and_grad), batch 4, network 2-8-5", report), Versus(BY_HAND)
    native = torch.func.vmap(torch.func.grad_and_value(loss), (None, 0))
    gradients, values = native(params, x)
    shapes = jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape, "float32"), (values, gradients))
    check = same((values, gradients), 1e-4)

    def by_hand(params: Any, x: Any) -> Any:
        gradients, values = native(*jax.tree.map(lambda array: torch.from_numpy(np.asarray(array)), (params, x)))
        return jax.tree.map(lambda tensor: tensor.numpy(), (values, gradients))

    def batched(f: Callable[..., Any]) -> Call:
        return calls(jax.jit(jax.vmap(jax.value_and_grad(f), (None, 0))), arrays, x_jax)

    race.enter(BY_HAND, lambda: calls(jax.jit(functools.partial(jax.pure_callback, by_hand, shapes)), arrays, x_jax))
    race.enter("torch.func", lambda: lambda: native(params, x), versus)
    race.enter("t2j", lambda: batched(t2j_autodiff(loss)), Versus(BY_HAND, 0.7), check)
    race.enter(COMPILED, lambda: as_asked(batched(compiled(loss))), versus, check)
    race.enter(PEER, lambda: batched(peer(loss, params, x[0])), versus, check)
    race.run(pace)


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
    race.enter("t2j", lambda: calls(pushed, arrays, x_jax, moved_jax), Versus("torch.func", 1.05), same(native(), 1e-3))
    race.run(pace)

    race = Race("Hessian-vector product, forward over reverse", report)

    def native() -> Any:
        return torch.func.jvp(torch.func.grad(lambda p: loss(p, x)), (params,), (moved,))[1]

    race.enter("torch.func", lambda: native)
    hvp = jax.jit(lambda p, x, dp: jax.jvp(jax.grad(lambda p: f(p, x)), (p,), (dp,))[1])
    race.enter("t2j", lambda: calls(hvp, arrays, x_jax, moved_jax), Versus("torch.func", 1.2), same(native(), 1e-3))
    race.run(pace)


def eager_grad(report: Report, pace: Pace) -> None:
    """Eager `jax.grad` of a model with 10 leaves, relative to that of a jitted jnp function."""
    torch.manual_seed(0)
    loss, params = loss_of(mlp(32, 5))
    x = torch.randn(16, 32)
    arrays, x_jax = in_jax((params, x))
    reference = "jax.grad of a jitted jnp function"
    race, versus = Race("eager grad, 10 leaves", report), Versus(reference)
    in_jnp = jax.jit(mlp_in_jnp)
    check = same(native_step(loss, params, x)()[1], 1e-4)
    race.enter(reference, lambda: calls(jax.grad(in_jnp), arrays, x_jax), None, check)
    race.enter("t2j", lambda: calls(jax.grad(t2j_autodiff(loss)), arrays, x_jax), Versus(reference, 1.15), check)
    race.enter("t2j jitted", lambda: calls(jax.jit(jax.grad(t2j_autodiff(loss))), arrays, x_jax), versus, check)
    race.enter(PEER, lambda: calls(jax.grad(peer(loss, params, x)), arrays, x_jax), versus, check)
    race.run(pace)


if __name__ == "__main__":
    main(
        {
            "tiny": tiny_grad,
            "per-example": per_example_gradients,
            "network": tiny_network,
            "forward": forward_mode,
            "eager": eager_grad,
        },
        FULL,
        QUICK,
    )
