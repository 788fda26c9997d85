"""The checks of operators and modules: each finds the fault that is planted for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import pytest
import torch
from case import Case, How
from fair import check_is_fair
from judge import Mismatch, NotCounted
from module_samples import Arguments, ModuleCase, RandomModule
from same_torch import same_torch
from second_derivatives import SecondDerivatives
from t2j_autodiff import torch2jax

pytestmark = pytest.mark.filterwarnings("ignore::t2j_autodiff.PerformanceWarning")  # a batch in turn

HOW = How("float32", 1, jax.jit)
FIRST = ("forward", "vjp", "jvp", "vmap", "vmap_vjp")
SECOND = ("vjp_vjp", "jvp_vjp", "vjp_jvp")


def passing(case: Case, checks: tuple[str, ...]) -> set[str]:
    """The checks that pass. All others must find a mismatch."""
    found = set()
    for check in checks:
        try:
            getattr(case, check)()
        except Mismatch:
            continue
        found.add(check)
    return found


def cube(x: torch.Tensor) -> torch.Tensor:
    return x**3


def with_wrong_value(x: torch.Tensor) -> torch.Tensor:
    return x**3 + 0.01


def with_wrong_gradient(x: torch.Tensor) -> torch.Tensor:
    return x.detach() * x**2


def with_wrong_curvature(x: torch.Tensor) -> torch.Tensor:
    """The value and the gradient are those of `cube`."""
    at = x.detach()
    return at**3 + 3 * at**2 * (x - at)


def case_with(fault: Callable[..., Any], kind: type[Case] = Case) -> Case:
    """The case of `cube`, for which the library calls a different function."""
    case = kind(cube, [torch.tensor([1.0, -2.0, 3.0])], HOW)
    case.wrapped = torch2jax(fault)
    return case


@pytest.mark.parametrize(
    ("fault", "right"),
    [
        (cube, {*FIRST}),
        (with_wrong_value, {*FIRST} - {"forward", "vmap"}),
        (with_wrong_gradient, {"forward", "vmap"}),
        (with_wrong_curvature, {*FIRST}),
    ],
)
def test_wrong_values_and_wrong_gradients_are_found(fault: Callable[..., Any], right: set[str]) -> None:
    assert passing(case_with(fault), FIRST) == right


@pytest.mark.parametrize("fault", [with_wrong_gradient, with_wrong_curvature])
def test_wrong_second_derivatives_are_found(fault: Callable[..., Any]) -> None:
    assert passing(case_with(cube, SecondDerivatives), SECOND) == {*SECOND}
    assert passing(case_with(fault, SecondDerivatives), SECOND) == set()


def turned(x: torch.Tensor) -> torch.Tensor:
    return x.roll(1)


@same_torch
def test_wrong_values_and_gradients_in_float8_are_found() -> None:
    how = replace(HOW, dtype="float8_e4m3fn")
    case, other = (Case(turned, [torch.tensor([1.0, 2.0, 0.5]).to(torch.float8_e4m3fn)], how) for _ in range(2))
    check_is_fair(case)
    assert passing(case, ("forward", "vjp", "vmap")) == {"forward", "vjp", "vmap"}
    other.wrapped = torch2jax(lambda x: x.clone())
    assert passing(other, ("forward", "vjp", "vmap")) == set()


class DetachedBackward(torch.autograd.Function):
    """`x**3`, whose second derivative is silently zero."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x.detach() ** 2 * grad


def test_a_second_derivative_of_torch_that_contradicts_its_gradients_is_not_counted() -> None:
    case = SecondDerivatives(
        DetachedBackward.apply, [torch.ones(3, dtype=torch.float64)], replace(HOW, dtype="float64")
    )
    with pytest.raises(NotCounted, match="contradicts"):
        case.vjp_vjp()


def test_a_gradient_that_jumps_contradicts_nothing() -> None:
    numbers = [torch.tensor([1.5, -0.5], dtype=torch.float64), torch.ones(2, dtype=torch.float64)]
    fn = lambda x, label: torch.where(label == 1, x**3, 0 * label)
    case = SecondDerivatives(fn, numbers, replace(HOW, dtype="float64"))
    assert [t.any().item() for t in case.product] == [True, False]


# --- modules ---


class Scaled(torch.nn.Module):
    """A layer with a parameter, statistics that training changes, and perhaps a fault."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("mean", torch.tensor([0.5, -0.5]))
        self.fault = fault
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean.mul_(0.5 if self.fault == "statistics" else 0.9).add_(x.detach().mean(0), alpha=0.1)
        weight = self.weight.detach() if self.fault == "parameter" else self.weight
        x = x.detach() if self.fault == "input" else x
        noise = torch.rand(2) if self.fault in ("random", "unseeded") else 0.0
        return (x - self.mean) * weight + noise


def module_case(module: torch.nn.Module, kind: type[ModuleCase] = ModuleCase, **of_the_library: str) -> ModuleCase:
    """The case of a module; the library gets one that has a fault."""
    arguments = Arguments((torch.tensor([[1.0, 2.0], [3.0, 5.0]]),), {})
    owned = [t.detach() for t in (*module.parameters(), *module.buffers())]
    make = partial(kind, tensors=owned + arguments.tensors, how=HOW, arguments=arguments)
    case = make(module)
    if of_the_library:
        case.wrapped = make(Scaled(**of_the_library).train(module.training)).wrapped
    return case


MODULE_CHECKS = ("forward", "again", "vjp", "vmap", "vmap_vjp")


@pytest.mark.parametrize(
    ("fault", "right"),
    [
        ("", {*MODULE_CHECKS}),
        ("statistics", set()),
        ("parameter", {"forward", "again", "vmap"}),
        ("input", {"forward", "again", "vmap"}),
    ],
)
def test_faults_of_a_module_in_training_are_found(fault: str, right: set[str]) -> None:
    assert passing(module_case(Scaled(), fault=fault), MODULE_CHECKS) == right


def test_statistics_that_are_not_passed_on_are_found_by_the_next_calls() -> None:
    case = module_case(Scaled())
    case.forward()
    first = case.call
    old = case.arrays[1]
    case.call = lambda weight, mean, x: first(weight, old, x)
    with pytest.raises(Mismatch):
        case.again()


def test_a_random_module_is_judged_by_torch_with_the_seed_of_the_key() -> None:
    module = Scaled("random").train()
    with pytest.raises(NotCounted, match="random output"):
        check_is_fair(module_case(module))
    case = module_case(module, RandomModule)
    check_is_fair(case)
    assert passing(case, MODULE_CHECKS) == {*MODULE_CHECKS}
    other = module_case(module, RandomModule)
    other.seed = case.seed + 1
    assert passing(other, ("forward", "vmap")) == set()
