"""Modules of flax that call a torch function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from corpus_case import Case, JaxCase, JaxTask
from flax import linen, nnx


def gelu_torch(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x @ w)


def gelu_jnp(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.nn.gelu(x @ w, approximate=False)


def module(f: Any) -> Any:
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.BatchNorm(use_running_average=False)(linen.Dense(4)(x))
            x = f(x, self.param("w", linen.initializers.normal(), (4, 3)))
            return linen.Dense(2)(x)

    return Net()


def linen_program(f: Any) -> Any:
    def run(x: Any) -> Any:
        variables = module(f).init(jax.random.key(0), x)
        return module(f).apply(variables, x, mutable=["batch_stats"])

    return run


def remat_in_scan(f: Any) -> Any:
    """Layers with `remat`, in a scan over the parameters."""

    class Layer(linen.Module):
        @linen.compact
        def __call__(self, x: Any, _: Any) -> Any:
            return f(x, self.param("w", linen.initializers.normal(1.0), (3, 3))), None

    def run(x: Any) -> Any:
        stack = linen.scan(linen.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
        return stack.apply(stack.init(jax.random.key(0), x, None), x, None)[0]

    return run


def nnx_program(f: Any) -> Any:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first, self.w = nnx.Linear(3, 4, rngs=rngs), nnx.Param(jax.random.normal(rngs.params(), (4, 2)))

        def __call__(self, x: Any) -> Any:
            return f(self.first(x), self.w[...])

    def run(x: Any) -> Any:
        net = Net(nnx.Rngs(0))
        gradient = nnx.grad(lambda net: jnp.sum(net(x) ** 2))(net)
        return net(x), nnx.to_pure_dict(gradient)

    return run


def cases() -> Iterator[Case]:
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    programs = {"linen module": linen_program, "linen remat in scan": remat_in_scan, "nnx module": nnx_program}
    for name, program in programs.items():
        task = lambda program=program: JaxTask(program, gelu_torch, gelu_jnp, (x,))
        yield JaxCase(name, task, tolerance=1e-3)
