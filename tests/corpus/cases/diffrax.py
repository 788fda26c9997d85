"""Differential equations of diffrax, with a vector field in torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import torch
from corpus_case import Case, JaxCase, JaxTask


def field_torch(y: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return torch.stack([y[1], p * (1 - y[0] ** 2) * y[1] - y[0]])


def field_jnp(y: jax.Array, p: jax.Array) -> jax.Array:
    return jnp.stack([y[1], p * (1 - y[0] ** 2) * y[1] - y[0]])


def solution(solver: Any, **options: Any) -> Any:
    """The solution at a few times, as a function of the initial value and of a parameter."""

    def program(f: Any) -> Any:
        def run(y: Any, p: Any) -> Any:
            term = diffrax.ODETerm(lambda t, y, p: f(y, p))
            at = diffrax.SaveAt(ts=jnp.linspace(0.0, 1.0, 4))
            return diffrax.diffeqsolve(term, solver, 0.0, 1.0, 0.1, y, args=p, saveat=at, max_steps=256, **options).ys

        return run

    return program


def stochastic(f: Any) -> Any:
    def run(y: Any, p: Any) -> Any:
        path = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-2, (), jax.random.key(0))
        drift = diffrax.ODETerm(lambda t, y, p: f(y, p))
        terms = diffrax.MultiTerm(drift, diffrax.ControlTerm(lambda t, y, p: 0.1 * y, path))
        return diffrax.diffeqsolve(terms, diffrax.Heun(), 0.0, 1.0, 0.1, y, args=p).ys

    return run


def event(f: Any) -> Any:
    """Stops where the first component is zero."""

    def run(y: Any, p: Any) -> Any:
        stop = diffrax.Event(lambda t, y, args, **kwargs: y[0])
        term = diffrax.ODETerm(lambda t, y, p: f(y, p))
        return diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, 9.0, 0.1, y, args=p, event=stop).ys

    return run


def case(name: str, program: Any, tolerance: float = 1e-4) -> JaxCase:
    args = np.array([1.0, 0.2], np.float32), np.float32(0.8)
    return JaxCase(name, lambda: JaxTask(program, field_torch, field_jnp, args), tolerance=tolerance)


def cases() -> Iterator[Case]:
    adaptive = diffrax.PIDController(rtol=1e-4, atol=1e-6)
    yield case("tsit5", solution(diffrax.Tsit5()))
    yield case("dopri5, adaptive", solution(diffrax.Dopri5(), stepsize_controller=adaptive), 1e-3)
    yield case("kvaerno3, implicit", solution(diffrax.Kvaerno3(), stepsize_controller=adaptive), 1e-3)
    yield case("direct adjoint", solution(diffrax.Heun(), adjoint=diffrax.DirectAdjoint()))
    yield case("forward mode", solution(diffrax.Heun(), adjoint=diffrax.ForwardMode()))
    yield case("backsolve adjoint", solution(diffrax.Tsit5(), adjoint=diffrax.BacksolveAdjoint()))
    yield case("stochastic equation", stochastic)
    yield case("event", event, 1e-3)
