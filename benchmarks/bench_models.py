"""Real models, a forward and a gradient step, relative to torch: `python benchmarks/bench_models.py [--quick]`.

The models with 10, 100 and 300 leaves are timed in the same rounds, and also give the cost of a leaf: the slope of a
line through the three times of a round.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from _harness import Call, Pace, Quartiles, Race, Report, Row, Versus, run_together
from _script import main

# The harness comes first because it pins the threads before torch loads.
# isort: split
import jax
import torch
from _contestants import (
    AFTER_FLOOR,
    COMPILED,
    FLOOR,
    JNP,
    PEER,
    TORCH,
    TORCH_COMPILE,
    after_floor,
    as_asked,
    floor_with,
    jitted,
    peer,
    same,
)
from _models import in_jax
from _real_models import REAL, Real, Task, leaves_task
from torch.func import functional_call

TOLERANCES = {"forward": 1e-3, "step": 1e-2}
Makers = dict[str, Callable[[], Call]]


@dataclass(frozen=True)
class Plan:
    """The models, the numbers of leaves, and how long to measure; `compiles` is whether torch's compiler takes part."""

    names: tuple[str, ...]
    leaves: tuple[int, ...]
    pace: Pace
    slow: Pace  # for models whose step takes more than a quarter of a second
    compiles: bool


FULL = Plan(tuple(REAL), (10, 100, 300), Pace(21), Pace(7, warmup=0.0), compiles=True)
QUICK = Plan(tuple(REAL)[:3], (10, 100), Pace(3, 0.004, 0.02), Pace(1, 0.004, 0.0), compiles=False)
SLOW = ("GPT-2 small",)


class Problem:
    """A task and a batch, in torch and in JAX."""

    def __init__(self, real: Real) -> None:
        task, x = real.make()
        self.task: Task = task
        self.x = x
        self.loss_in_jnp = real.in_jnp
        self.targets = real.targets

    @cached_property
    def params(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.task.named_parameters()}

    @cached_property
    def arrays(self) -> Any:
        return in_jax((self.params, self.x))

    def native(self, kind: str, task: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        """The loss, or the loss and its gradients, in torch alone."""
        leaves = dict(self.task.named_parameters())

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return task(self.x)

        def step() -> Any:
            value = task(self.x)
            return value.detach(), dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))

        return {"forward": forward, "step": step}[kind]

    def in_jit(self, kind: str, loss: Callable[..., Any]) -> Call:
        """The same from JAX."""
        return jitted(loss if kind == "forward" else jax.value_and_grad(loss), *self.arrays)

    def t2j(self, kind: str, **options: Any) -> Call:
        from t2j_autodiff import module2jax

        apply, _ = module2jax(self.task, **options)
        return self.in_jit(kind, lambda params, x: apply({"params": params, "buffers": {}}, x))

    def peer(self, kind: str) -> Call:
        entry = "torch2jax_without_vjp" if kind == "forward" else "torch2jax"
        loss = lambda params, x: functional_call(self.task, params, (x,))
        return self.in_jit(kind, peer(loss, self.params, self.x, entry=entry))

    def jnp(self, kind: str) -> Call:
        if self.loss_in_jnp is None:
            raise NotImplementedError("the model is not written in jnp")
        return self.in_jit(kind, self.loss_in_jnp)

    def floor(self, kind: str) -> Call:
        """As many FFI calls as t2j makes, with the same operands and results, that do nothing."""
        number = jax.ShapeDtypeStruct((), "float32")

        def forward(params: dict[str, jax.Array], x: jax.Array) -> Any:
            return floor_with([number], x, *params.values())

        def step(params: dict[str, jax.Array], x: jax.Array) -> Any:
            value, residual = floor_with([number, number], x, *params.values())
            return value, floor_with(list(params.values()), x, *params.values(), residual, value)

        return jitted({"forward": forward, "step": step}[kind], *self.arrays)

    def makers(self, kind: str, *, compiles: bool) -> Makers:
        """The contestants, torch first."""
        graph: Makers = {"t2j graph": lambda: as_asked(self.t2j(kind, residuals="graph"))}
        with_compiler: Makers = {
            TORCH_COMPILE: lambda: self.native(kind, torch.compile(self.task)),
            COMPILED: lambda: as_asked(self.t2j(kind, compile=True)),
        }
        return {
            TORCH: lambda: self.native(kind, self.task),
            "t2j": lambda: self.t2j(kind),
            **(graph if kind == "step" else {}),
            **(with_compiler if compiles else {}),
            PEER: lambda: self.peer(kind),
            JNP: lambda: self.jnp(kind),
        }


def entered(title: str, problem: Problem, kind: str, report: Report, plan: Plan, at: int | None = None) -> Race:
    """The contestants for one model. Each first result must equal torch's."""
    race = Race(f"{kind}, {title}", report, at)
    native, floor = problem.native(kind, problem.task), problem.floor(kind)
    check = same(native(), TOLERANCES[kind])
    for name, make in problem.makers(kind, compiles=plan.compiles).items():
        target = problem.targets.get(kind) if name == "t2j" else None
        race.enter(name, make, None if name == TORCH else Versus(TORCH, target), check)
    race.enter(FLOOR, lambda: floor, Versus(TORCH))
    race.enter(AFTER_FLOOR, lambda: after_floor(floor, native), Versus(TORCH), check)
    return race


def model(name: str, report: Report, plan: Plan) -> None:
    """Forward and step of one of the real models."""
    if name not in plan.names:
        return
    problem = Problem(REAL[name])
    for kind in TOLERANCES:
        entered(name, problem, kind, report, plan).run(plan.slow if name.startswith(SLOW) else plan.pace)
        forget()


def forget() -> None:
    """Free what torch's compiler keeps, and everything in cycles."""
    torch.compiler.reset()
    gc.collect()


def leaves(report: Report, plan: Plan) -> None:
    """Models of many small layers, and the cost of a leaf."""
    problems = {n: Problem(leaves_task(n)) for n in plan.leaves}
    for kind in TOLERANCES:
        title = "leaves of [Linear(16, 16), Tanh]"
        races = {n: entered(title, problem, kind, report, plan, n) for n, problem in problems.items()}
        run_together(list(races.values()), plan.pace)
        report.rows += per_leaf(kind, {n: race.samples for n, race in races.items()})
        forget()


Samples = Mapping[str, Sequence[float]]
Line = tuple[float, float]


def per_leaf(kind: str, samples: Mapping[int, Samples]) -> list[Row]:
    """For each contestant the slope and the intercept of the line through its times, fitted in each round."""
    names = [name for name in samples[max(samples)] if all(name in found for found in samples.values())]
    lines = {name: fitted({n: found[name] for n, found in samples.items()}) for name in names}
    how = "by least squares over the leaves"
    slopes = [relative(f"{kind}, each leaf, {how}", name, lines) for name in names]
    starts = [Row(f"{kind}, without leaves, {how}", name, "us", part(lines[name], 1)) for name in names]
    return [*slopes, *starts]


def fitted(seconds: Mapping[int, Sequence[float]]) -> list[Line]:
    """For each round the microseconds per leaf and without leaves."""
    rounds = zip(*seconds.values(), strict=True)
    lines = [statistics.linear_regression(list(seconds), [1e6 * second for second in found]) for found in rounds]
    return [(line.slope, line.intercept) for line in lines]


def part(lines: Sequence[Line], which: int) -> Quartiles:
    return Quartiles.of([line[which] for line in lines])


def relative(question: str, name: str, lines: Mapping[str, Sequence[Line]]) -> Row:
    """The slopes of a contestant, relative to torch's in the same rounds."""
    row = Row(question, name, "us", part(lines[name], 0), len(lines[name]))
    if name == TORCH:
        return row
    ratios = [mine[0] / other[0] for mine, other in zip(lines[name], lines[TORCH], strict=True)]
    return replace(row, reference=TORCH, ratio=Quartiles.of(ratios))


if __name__ == "__main__":
    keys = {name: name.partition(",")[0].partition(" with")[0].lower().replace(" ", "-") for name in REAL}
    main({key: partial(model, name) for name, key in keys.items()} | {"leaves": leaves}, FULL, QUICK)
