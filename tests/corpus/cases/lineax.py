"""Linear solvers of lineax, with operators in torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import torch
from corpus_case import Case, JaxCase, JaxTask

STRUCTURE = jax.ShapeDtypeStruct((3,), np.float32)


def product_torch(x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return d * x + 0.1 * (x.roll(1) + x.roll(-1))


def product_jnp(x: jax.Array, d: jax.Array) -> jax.Array:
    return d * x + 0.1 * (jnp.roll(x, 1) + jnp.roll(x, -1))


def curve_torch(x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return d * x + 0.1 * x.sin().roll(1)


def curve_jnp(x: jax.Array, d: jax.Array) -> jax.Array:
    return d * x + 0.1 * jnp.roll(jnp.sin(x), 1)


def function(solver: Any, *tags: Any) -> Any:
    def program(f: Any) -> Any:
        def run(d: Any, b: Any) -> Any:
            return lx.linear_solve(lx.FunctionLinearOperator(lambda x: f(x, d), STRUCTURE, tags), b, solver).value

        return run

    return program


def jacobian(solver: Any) -> Any:
    def program(f: Any) -> Any:
        def run(d: Any, b: Any) -> Any:
            return lx.linear_solve(lx.JacobianLinearOperator(lambda x, _: f(x, d), 0.1 * b), b, solver).value

        return run

    return program


def cases() -> Iterator[Case]:
    args = np.array([2.0, 3.0, 4.0], np.float32), np.array([1.0, -1.0, 0.5], np.float32)
    linear, curve = (product_torch, product_jnp), (curve_torch, curve_jnp)
    symmetric = function(lx.CG(1e-6, 1e-6), lx.positive_semidefinite_tag, lx.symmetric_tag)
    programs = {
        "function, cg": (symmetric, linear),
        "function, lu": (function(lx.LU()), linear),
        "function, gmres": (function(lx.GMRES(1e-6, 1e-6)), linear),
        "jacobian, lu": (jacobian(lx.LU()), curve),
        "jacobian, qr": (jacobian(lx.QR()), curve),
    }
    for name, (program, pair) in programs.items():
        yield JaxCase(name, lambda program=program, pair=pair: JaxTask(program, *pair, args), tolerance=1e-3)
