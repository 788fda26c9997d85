"""Samplers of blackjax, with a log density in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from corpus_case import Case, JaxCase, JaxTask

START = np.array([0.3, -0.2], np.float32)


def library() -> Any:
    """The package, which makes JAX arrays when it is imported; after that a process cannot be forked."""
    import blackjax

    return blackjax


def log_density_torch(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return -0.5 * ((x * scale) ** 2).sum() - (x[0] * x[1]).cos()


def log_density_jnp(x: jax.Array, scale: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum((x * scale) ** 2) - jnp.cos(x[0] * x[1])


def chain(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Five steps of a sampler."""

    def program(f: Any) -> Any:
        def run(x: Any, scale: Any) -> Any:
            algorithm = make(lambda z: f(z, scale))
            state = algorithm.init(x, jax.random.key(2)) if make is dynamic else algorithm.init(x)
            keys = jax.random.split(jax.random.key(0), 5)
            step = lambda state, key: ((state := algorithm.step(key, state)[0]), state.position)
            return jax.lax.scan(step, state, keys)[1]

        return run

    return program


def dynamic(f: Any) -> Any:
    return library().dynamic_hmc(f, step_size=0.1, inverse_mass_matrix=jnp.ones(2))


def adaptation(f: Any) -> Any:
    """The warm-up of a sampler, which adapts its step."""

    def run(x: Any, scale: Any) -> Any:
        warm_up = library().window_adaptation(library().hmc, lambda z: f(z, scale), num_integration_steps=2)
        (state, parameters), _ = warm_up.run(jax.random.key(0), x, num_steps=10)
        return state.position, parameters["step_size"]

    return run


def pathfinder(f: Any) -> Any:
    def run(x: Any, scale: Any) -> Any:
        state, _ = library().vi.pathfinder.approximate(jax.random.key(0), lambda z: f(z, scale), x, 20, maxiter=5)
        return state.elbo, state.position

    return run


def case(name: str, program: Any, tolerance: float = 1e-3) -> JaxCase:
    args = START, np.array([1.0, 0.7], np.float32)
    return JaxCase(name, lambda: JaxTask(program, log_density_torch, log_density_jnp, args), tolerance=tolerance)


def cases() -> Iterator[Case]:
    mass = np.ones(2, np.float32)
    yield case("hmc", chain(lambda f: library().hmc(f, 0.1, mass, 4)))
    yield case("nuts", chain(lambda f: library().nuts(f, 0.1, mass, max_num_doublings=3)))
    yield case("mala", chain(lambda f: library().mala(f, 0.05)))
    yield case("dynamic hmc", chain(dynamic))
    yield case("window adaptation", adaptation)
    yield case("pathfinder", pathfinder)
