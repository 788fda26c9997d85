"""ODE solvers of torchdiffeq."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torchdiffeq
from corpus_case import Case, TorchCase, TorchTask
from torch import Tensor, nn


class NeuralODE(nn.Module):
    def __init__(self, solve: Any = torchdiffeq.odeint, **options: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
        self.solve, self.options = solve, options

    def forward(self, y: Tensor) -> Tensor:
        times = torch.linspace(0.0, 1.0, 3, dtype=y.dtype)
        field = Field(self.net)
        return self.solve(field, y, times, **self.options)


class Field(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) * (1 + t)


def pendulum(y: Tensor, friction: Tensor) -> Tensor:
    field = lambda t, y: torch.stack([y[1], -torch.sin(y[0]) - friction * y[1]])
    return torchdiffeq.odeint(field, y, torch.tensor([0.0, 0.5, 1.0], dtype=y.dtype), rtol=1e-7, atol=1e-9)


def event(height: Tensor) -> Tensor:
    """The time at which a ball lands."""
    state = (height, torch.zeros_like(height))
    field = lambda t, y: (y[1], -9.8 * torch.ones_like(y[1]))
    time, _ = torchdiffeq.odeint_event(field, state, torch.zeros((), dtype=height.dtype), event_fn=lambda t, y: y[0])
    return time


def neural(**options: Any) -> Any:
    return lambda: TorchTask(NeuralODE(**options), (torch.randn(3, 2),))


def wide(task: TorchTask) -> TorchTask:
    fn = task.fn.double() if isinstance(task.fn, nn.Module) else task.fn
    return TorchTask(fn, tuple(a.double() for a in task.args))


def cases() -> Iterator[Case]:
    yield TorchCase("neural ode, dopri5", neural(), tolerance=1e-3)
    yield TorchCase("neural ode, rk4", neural(method="rk4"))
    yield TorchCase("neural ode, implicit adams", neural(method="implicit_adams"), tolerance=1e-3)
    adjoint = neural(solve=torchdiffeq.odeint_adjoint, rtol=1e-9, atol=1e-11)
    yield TorchCase("neural ode, adjoint", lambda: wide(adjoint()), x64=True, tolerance=1e-6)
    initial = lambda: TorchTask(pendulum, (torch.tensor([1.0, 0.2]), torch.tensor(0.3)))
    yield TorchCase("pendulum", lambda: wide(initial()), x64=True, tolerance=1e-6)
    yield TorchCase("event", lambda: wide(TorchTask(event, (torch.tensor(2.0),))), x64=True, tolerance=1e-5)
