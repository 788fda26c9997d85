"""`module2jax` with derivatives and batching."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from t2j_core.extend import functional, options_of, public

from .._base.keywords import DiffKeywords
from .function import DifferentiableFunction
from .torch2jax import torch2jax


@public(options_of(torch2jax))
def module2jax(
    module: torch.nn.Module,
    *,
    train: bool | None = None,
    mutable: bool = False,
    copy: bool = False,
    **options: Unpack[DiffKeywords],
) -> tuple[DifferentiableFunction[...], dict[str, dict[str, Any]]]:
    """An `nn.Module` as a pure, differentiable JAX function and its variables.

    As `t2j_core.module2jax`, but `apply` can be differentiated, with respect to its variables too, and batched.

    Args:
      module: any module; it is not changed.
      train: run in training (True) or evaluation (False) mode; None keeps the mode the module is in.
      mutable: also return the new buffers, such as the running statistics of BatchNorm.
      copy: give the variables memory of their own. By default they lie over the module's, so that a torch optimizer
        which steps on the module changes them: see `t2j_core.module2jax`.
      **options: those of `torch2jax`.

    Returns:
      `(apply, variables)`.
      The variables are `{"params": {name: array}, "buffers": {name: array}}`.

    Raises:
      ArgumentError: if `module` is not a module, has parameters without data, or cannot be copied; from `apply`, for
        variables of a wrong name or shape.

    >>> import jax, jax.numpy as jnp, torch
    >>> apply, variables = module2jax(torch.nn.Linear(3, 1, bias=False))
    >>> loss = lambda params: apply({"params": params, "buffers": {}}, jnp.ones((2, 3))).sum()
    >>> jax.grad(loss)(variables["params"])["weight"].tolist()
    [[2.0, 2.0, 2.0]]
    """
    call, variables = functional(module, train=train, mutable=mutable, copy=copy)
    return torch2jax(call, **options), variables
