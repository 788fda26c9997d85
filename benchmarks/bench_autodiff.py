"""What derivatives and batches cost through t2j_autodiff: `python benchmarks/bench_autodiff.py [--quick]`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _harness import Call, Pace, Race, Report, Versus, environment, save, table

# The harness comes first because it pins the threads before torch loads.
# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import torch
from t2j_autodiff import torch2jax, tree_t2j
from torch.func import functional_call

HERE = Path(__file__).parent
PEER = "wrap_torch2jax"
FULL, QUICK = Pace(31), Pace(5, warmup=0.1)

Params = dict[str, torch.Tensor]


def peer(fn: Callable[..., Any], *examples: Any) -> Callable[..., Any]:
    """The predecessor's wrapper."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # it prints while it compiles
        warnings.simplefilter("ignore")
        import wrap_torch2jax

        return wrap_torch2jax.torch2jax(fn, *examples)


def ready(fn: Callable[..., Any], *args: Any) -> Call:
    """A call that waits for its result."""
    return lambda: jax.block_until_ready(fn(*args))


# --- models: a loss of parameters and inputs -----------------------------------------------------------------------


def mlp(width: int, depth: int) -> torch.nn.Module:
    """A multilayer perceptron with tanh."""
    layers: list[torch.nn.Module] = []
    for _ in range(depth):
        layers += [torch.nn.Linear(width, width), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers)


def convnet() -> torch.nn.Module:
    """Two convolutions and a linear layer."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 64, 3, padding=1, stride=2),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(64 * 16 * 16, 10),
    )


def block() -> torch.nn.Module:
    """A transformer block without dropout."""
    return torch.nn.TransformerEncoderLayer(256, 8, 1024, dropout=0.0, batch_first=True)


def loss_of(module: torch.nn.Module) -> tuple[Callable[[Params, torch.Tensor], torch.Tensor], Params]:
    """The mean square of a module's output as a function of its parameters, and these."""
    params = {name: p.detach().clone() for name, p in module.named_parameters()}

    def loss(params: Params, x: torch.Tensor) -> torch.Tensor:
        return functional_call(module, params, (x,)).square().mean()

    return loss, params


MODELS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...], float]] = {
    "transformer block, 32 x 64 x 256": (block, (32, 64, 256), 1.10),
    "convnet, 32 x 3 x 32 x 32": (convnet, (32, 3, 32, 32), 1.10),
    "MLP 4 x 1024, batch 256": (functools.partial(mlp, 1024, 4), (256, 1024), 1.20),
}


def same(expected: Any, tolerance: float = 1e-3) -> Callable[[object], None]:
    """A check that a result has these leaves."""

    def check(result: object) -> None:
        for mine, other in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(np.asarray(mine), np.asarray(other), rtol=tolerance, atol=tolerance)

    return check


# --- questions -----------------------------------------------------------------------------------------------------


def value_and_grad(report: Report, pace: Pace) -> None:
    """Jitted `value_and_grad` beside torch's forward and backward."""
    for name, (make, shape, target) in MODELS.items():
        _value_and_grad(Race(f"1. value_and_grad, {name}", report), make(), shape, target).run(pace)


def _value_and_grad(race: Race, module: torch.nn.Module, shape: tuple[int, ...], target: float) -> Race:
    torch.manual_seed(0)
    loss, params = loss_of(module)
    x = torch.randn(shape)
    arrays, x_jax = tree_t2j(params), tree_t2j(x)

    def native() -> Any:
        leaves = {key: p.requires_grad_() for key, p in params.items()}
        value = loss(leaves, x)
        return value.detach(), dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))

    check = same(native())
    race.enter("torch", lambda: native)
    for residuals in ("auto", "recompute", "graph"):
        goal = Versus("torch", target if residuals == "auto" else None)
        step = jax.jit(jax.value_and_grad(torch2jax(loss, residuals=residuals)))
        race.enter(f"t2j {residuals}", lambda step=step: ready(step, arrays, x_jax), goal, check)
    race.enter(
        PEER,
        lambda: ready(jax.jit(jax.value_and_grad(peer(loss, params, x))), arrays, x_jax),
        Versus("torch"),
        check,
    )
    return race


def tiny_grad(report: Report, pace: Pace) -> None:
    """Jitted `grad` of a tiny function: recomputing is quicker than keeping a graph."""
    race = Race("2. grad of a tiny function, 8 x 8", report)

    def fn(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ x).sum()

    x = jnp.eye(8) * 0.3
    for residuals, goal in (("recompute", None), ("auto", Versus("t2j recompute", 1.05))):
        race.enter(
            f"t2j {residuals}", lambda r=residuals: ready(jax.jit(jax.grad(torch2jax(fn, residuals=r))), x), goal
        )
    race.enter(PEER, lambda: ready(jax.jit(jax.grad(peer(fn, torch.eye(8)))), x), Versus("t2j recompute"))
    race.run(pace)


def per_example_gradients(report: Report, pace: Pace) -> None:
    """`vmap(grad)` over a batch of 64."""
    for width, target in ((32, 1 / 10), (256, 1 / 3)):
        _per_example_gradients(Race(f"3. vmap(grad), batch 64, MLP 3 x {width}", report), width, target).run(pace)


def _per_example_gradients(race: Race, width: int, target: float) -> Race:
    torch.manual_seed(0)
    loss, params = loss_of(mlp(width, 3))
    x = torch.randn(64, width)
    arrays, x_jax = tree_t2j(params), tree_t2j(x)
    native = torch.func.vmap(torch.func.grad(loss), (None, 0))
    check = same(native(params, x))

    def batched(f: Callable[..., Any]) -> Call:
        return ready(jax.jit(jax.vmap(jax.grad(f), (None, 0))), arrays, x_jax)

    race.enter(PEER, lambda: batched(peer(loss, params, x[0])), check=check)
    race.enter("torch.func", lambda: functools.partial(native, params, x), Versus(PEER))
    race.enter("t2j auto", lambda: batched(torch2jax(loss)), Versus(PEER, target), check)
    race.enter("t2j sequential", lambda: batched(torch2jax(loss, vmap_method="sequential")), Versus(PEER), check)
    return race


def forward_mode(report: Report, pace: Pace) -> None:
    """`jvp` and Hessian-vector products beside `torch.func`."""
    torch.manual_seed(0)
    loss, params = loss_of(mlp(512, 4))
    x = torch.randn(256, 512)
    moved = {key: torch.randn_like(p) for key, p in params.items()}
    arrays, x_jax, moved_jax = tree_t2j(params), tree_t2j(x), tree_t2j(moved)
    f = torch2jax(loss)

    race = Race("4. jvp, MLP 4 x 512, batch 256", report)
    native = functools.partial(torch.func.jvp, lambda p: loss(p, x), (params,), (moved,))
    race.enter("torch.func", lambda: native)
    pushed = jax.jit(lambda p, x, dp: jax.jvp(lambda p: f(p, x), (p,), (dp,)))
    race.enter("t2j", lambda: ready(pushed, arrays, x_jax, moved_jax), Versus("torch.func", 1.5), same(native()))
    race.run(pace)

    race = Race("5. Hessian-vector product, forward over reverse", report)

    def native() -> Any:
        return torch.func.jvp(torch.func.grad(lambda p: loss(p, x)), (params,), (moved,))[1]

    race.enter("torch.func", lambda: native)
    hvp = jax.jit(lambda p, x, dp: jax.jvp(jax.grad(lambda p: f(p, x)), (p,), (dp,))[1])
    race.enter("t2j", lambda: ready(hvp, arrays, x_jax, moved_jax), Versus("torch.func", 1.2), same(native()))
    race.run(pace)


def eager_grad(report: Report, pace: Pace) -> None:
    """Eager `jax.grad` of a model with 10 leaves."""
    torch.manual_seed(0)
    loss, params = loss_of(mlp(32, 5))
    x = torch.randn(16, 32)
    arrays, x_jax = tree_t2j(params), tree_t2j(x)
    race = Race("6. eager grad, 10 leaves", report)
    race.enter("t2j jitted", lambda: ready(jax.jit(jax.grad(torch2jax(loss))), arrays, x_jax))
    race.enter(PEER, lambda: ready(jax.grad(peer(loss, params, x)), arrays, x_jax), Versus("t2j jitted"))
    race.enter("t2j", lambda: ready(jax.grad(torch2jax(loss)), arrays, x_jax), Versus("t2j jitted"))
    race.run(pace)


QUESTIONS: dict[int, Callable[[Report, Pace], None]] = {
    1: value_and_grad,
    2: tiny_grad,
    3: per_example_gradients,
    4: forward_mode,
    6: eager_grad,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer the questions asked for, print the table and save the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    everything = list(QUESTIONS)
    parser.add_argument("--only", type=int, nargs="+", choices=everything, default=everything, metavar="N")
    parser.add_argument("--output", type=Path, help="results file; a full run writes results/autodiff.json")
    options = parser.parse_args(arguments)
    output = options.output
    if output is None and not options.quick and options.only == everything:
        output = HERE / "results" / "autodiff.json"
    head, report = environment(), Report()
    for number in options.only:
        QUESTIONS[number](report, QUICK if options.quick else FULL)
    if output is not None:
        save(report, head, output)
    sys.stdout.write(table(report) + "\n")


if __name__ == "__main__":
    main()
