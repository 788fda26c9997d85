"""The types of wrapped functions. `nox -s types` checks this file; it is never run.

Editors show the parameters of the user's function. Its annotations say `torch.Tensor` where callers pass JAX arrays, so
type checkers must accept a call with any argument types.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, assert_type

import jax
import jax.numpy as jnp
import t2j_autodiff
import t2j_core
import t2j_dist
import torch

P = ParamSpec("P")


def softmax(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """A function with annotations."""
    return torch.softmax(x, dim)


@t2j_core.torch2jax
def scale(x: torch.Tensor, *, by: float = 1.0) -> torch.Tensor:
    """A decorated function."""
    return x * by


def parameters_of(fn: t2j_core.TorchFunction[P]) -> Callable[P, None]:
    """Return a function with the parameters of `fn`."""
    raise NotImplementedError


def parameters_are_kept() -> None:
    """A checker reports wrong calls of a function with the same parameters, so it knows the parameters."""
    for fn in (t2j_core.torch2jax(softmax), t2j_dist.torch2jax(softmax)):
        parameters_of(fn)(torch.ones(3), dim=0)
        parameters_of(fn)(torch.ones(3), axis=0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    parameters_of(t2j_autodiff.torch2jax(softmax))(torch.ones(3), dim=0)
    parameters_of(scale)(torch.ones(3), b=2.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def calls_are_accepted(x: jax.Array, key: jax.Array) -> None:
    """Pass JAX arrays where the annotations say tensors."""
    f = t2j_autodiff.torch2jax(softmax, depth=None)
    assert_type(f(x), Any)
    assert_type(f(x, dim=0), Any)
    assert_type(f(torch.ones(3)), Any)
    assert_type(scale({"tree": x}, by=jnp.ones(())), Any)
    t2j_core.torch2jax(softmax, rng=True)(key, x)
    t2j_dist.torch2jax(softmax, out_specs=jax.sharding.PartitionSpec())(x)
    t2j_autodiff.torch2jax(lambda a, b: a @ b)(x, x)
    t2j_core.torch2jax(torch.sin)(x)
    t2j_core.torch2jax(torch.nn.Linear(3, 4))(x)
    apply, variables = t2j_autodiff.module2jax(torch.nn.Linear(3, 4))
    apply(variables, x)
    jax.jit(f)(x)
    jax.grad(f)(x)
    jax.vmap(f)(x)


def options_are_known(module: torch.nn.Module) -> None:
    """A checker reports misspelt options and values."""
    t2j_core.torch2jax(softmax, outputs="none")  # type: ignore[call-overload, arg-type, unused-ignore]  # pyright: ignore[reportArgumentType]
    t2j_autodiff.torch2jax(softmax, vmap_method="vmap", residuals="graph", vmap_randomness="same")
    t2j_dist.torch2jax(softmax, vmap_method="vmap", residuals="graph", arguments="check", lock=True)
    t2j_dist.torch2jax(softmax, vmap_method="loop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    t2j_autodiff.module2jax(module, outputs="copy", depth=1)
    t2j_autodiff.module2jax(module, deep=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    t2j_core.module2jax(module, output="copy")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    t2j_core.module2jax(module, outputs="none")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    t2j_core.module2jax(module, train="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    t2j_autodiff.module2jax(module, residuals="grpah")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    t2j_dist.module2jax(module, residuals="graph", out_specs=jax.sharding.PartitionSpec())
    t2j_dist.module2jax(module, deep=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def takes_a_function(fn: Callable[[jax.Array], jax.Array]) -> None:
    """Pass a wrapped function as a function of arrays."""


def wrapped_functions_are_passed_on() -> t2j_core.TorchFunction:
    """Use the type without type parameters."""
    takes_a_function(t2j_core.torch2jax(softmax))
    takes_a_function(scale)
    return t2j_autodiff.torch2jax(softmax)
