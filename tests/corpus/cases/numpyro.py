"""Samplers and variational inference of numpyro, with a log density in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import torch
from corpus_case import Case, JaxCase, JaxTask
from numpyro import distributions as dist
from numpyro import infer

DATA = np.linspace(-1.0, 2.0, 6, dtype=np.float32)


def potential_torch(z: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    return 0.5 * (z**2).sum() + 0.5 * ((data - z[0] - z[1].sin()) ** 2).sum()


def potential_jnp(z: jax.Array, data: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum(z**2) + 0.5 * jnp.sum((data - z[0] - jnp.sin(z[1])) ** 2)


def sampler(kernel: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Five steps of a sampler without adaptation."""

    def program(f: Any) -> Any:
        def run(data: Any) -> Any:
            sample = kernel(lambda z: f(z, data))
            state = sample.init(jax.random.key(0), 0, jnp.array([0.1, 0.2]), (), {})
            step = lambda state, _: ((state := sample.sample(state, (), {})), state.z)
            return jax.lax.scan(step, state, None, length=5)[1]

        return run

    return program


def variational(f: Any) -> Any:
    def model(data: Any) -> None:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.factor("likelihood", -f(z, data))

    def run(data: Any) -> Any:
        guide = infer.autoguide.AutoNormal(model)
        svi = infer.SVI(model, guide, numpyro.optim.Adam(0.05), infer.Trace_ELBO())
        state = svi.init(jax.random.key(1), data)
        state, losses = jax.lax.scan(lambda s, _: svi.update(s, data), state, None, length=5)
        return losses, svi.get_params(state)

    return run


def density(f: Any) -> Any:
    """The joint density of a model with a torch function in the middle, in a plate."""

    def model(scale: Any, data: Any) -> None:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        level = numpyro.deterministic("level", f(z, data))
        with numpyro.plate("data", len(data)):
            numpyro.sample("y", dist.Normal(level, jnp.exp(scale)), obs=data)

    def run(z: Any, scale: Any, data: Any) -> Any:
        return infer.util.log_density(model, (scale, data), {}, {"z": z})[0]

    return run


def posterior(program: Any, *args: Any) -> Callable[[], JaxTask]:
    return lambda: JaxTask(program, potential_torch, potential_jnp, args)


def fixed(make: Any, **options: Any) -> Any:
    settings = {"step_size": 0.1, "adapt_step_size": False, "adapt_mass_matrix": False, **options}
    return sampler(lambda potential: make(potential_fn=potential, **settings))


def cases() -> Iterator[Case]:
    yield JaxCase("hmc", posterior(fixed(infer.HMC, num_steps=4), DATA))
    yield JaxCase("nuts", posterior(fixed(infer.NUTS, max_tree_depth=3), DATA), tolerance=1e-3)
    yield JaxCase("variational inference", posterior(variational, DATA), tolerance=1e-3)
    yield JaxCase("density of a model", posterior(density, DATA[:2], np.float32(0.3), DATA))
