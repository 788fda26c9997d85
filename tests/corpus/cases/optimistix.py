"""Root finders, minimisers and least squares of optimistix, with a function in torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import torch
from corpus_case import Case, JaxCase, JaxTask


def residuals_torch(y: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return torch.stack([10 * (y[1] - y[0] ** 2), p - y[0]])


def residuals_jnp(y: jax.Array, p: jax.Array) -> jax.Array:
    return jnp.stack([10 * (y[1] - y[0] ** 2), p - y[0]])


def solved(solve: Any, wrap: Any = lambda f: f) -> Any:
    def program(f: Any) -> Any:
        return lambda y, p: solve(wrap(f), y, p).value

    return program


def cases() -> Iterator[Case]:
    lm, bfgs = optx.LevenbergMarquardt(1e-5, 1e-5), optx.BFGS(1e-5, 1e-5)
    squares = lambda f: lambda y, p: jnp.sum(f(y, p) ** 2)
    contraction = lambda f: lambda y, p: 0.05 * f(y, p) + 0.3
    steps = {"max_steps": 200, "throw": False}
    programs = {
        "newton": solved(lambda f, y, p: optx.root_find(f, optx.Newton(1e-5, 1e-5), y, p, **steps)),
        "chord": solved(lambda f, y, p: optx.root_find(f, optx.Chord(1e-4, 1e-4), y, p, **steps)),
        "dogleg": solved(lambda f, y, p: optx.least_squares(f, optx.Dogleg(1e-5, 1e-5), y, p, **steps)),
        "levenberg-marquardt": solved(lambda f, y, p: optx.least_squares(f, lm, y, p, **steps)),
        "bfgs": solved(lambda f, y, p: optx.minimise(f, bfgs, y, p, **steps), squares),
        "nelder-mead": solved(lambda f, y, p: optx.minimise(f, optx.NelderMead(1e-3, 1e-3), y, p, **steps), squares),
        "fixed point": solved(
            lambda f, y, p: optx.fixed_point(f, optx.FixedPointIteration(1e-6, 1e-6), y, p, **steps), contraction
        ),
    }
    args = np.array([0.9, 0.7], np.float32), np.float32(1.1)
    for name, program in programs.items():
        task = lambda program=program: JaxTask(program, residuals_torch, residuals_jnp, args)
        yield JaxCase(name, task, tolerance=2e-3)
