"""`module2jax` with derivatives and batching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from t2j_core.extend import Arguments, Options, Results, functional, option_names, public

from .._base.options import DiffOptions, Randomness, ResidualsOption, VmapMethod
from .function import DifferentiableFunction
from .torch2jax import torch2jax


@public()
def module2jax(
    module: torch.nn.Module,
    *,
    train: bool | None = None,
    mutable: bool = False,
    copy: bool = False,
    depth: int | None = 2,
    nondiff_argnums: int | Sequence[int] | None = (),
    nondiff_mask: Any = None,
    use_zeros: bool = True,
    use_torch_vjp: bool = True,
    residuals: ResidualsOption = "auto",
    vmap_method: VmapMethod = "auto",
    vmap_randomness: Randomness | None = None,
    vmap_chunk_size: int | None = None,
    output_shapes: Any = None,
    mutable_argnums: int | Sequence[int] = (),
    rng: bool = False,
    arguments: Arguments = "auto",
    outputs: Results = "auto",
    has_side_effect: bool = False,
    name: str | None = None,
    compile: bool = False,
    command_buffer: bool = False,
) -> tuple[DifferentiableFunction[...], dict[str, dict[str, Any]]]:
    """An `nn.Module` as a pure, differentiable JAX function and its variables.

    As `t2j_core.module2jax`, but `apply` can be differentiated, with respect to its variables too, and batched.

    Args:
      module: any module; it is not changed.
      train: run in training (True) or evaluation (False) mode; None keeps the mode the module is in.
      mutable: also return the new buffers, such as the running statistics of BatchNorm.
      copy: give the variables memory of their own. By default they lie over the module's, so that a torch optimizer
        which steps on the module changes them: see `t2j_core.module2jax`.
      depth: how many times the module may be differentiated. Like all that follow, an option of `torch2jax`.
      nondiff_argnums: positions of arguments that are constants to differentiation. The variables are an argument.
      nondiff_mask: the same leaf by leaf.
      use_zeros: accepted for `wrap_torch2jax`.
      use_torch_vjp: accepted for `wrap_torch2jax`.
      residuals: what the backward gets from the forward: `"auto"`, `"recompute"` or `"graph"`.
      vmap_method: how `jax.vmap` runs: `"auto"`, `"vmap"`, `"sequential"`, `"expand_dims"` or `"broadcast_all"`.
      vmap_randomness: random numbers of the examples of a `torch.func.vmap`: `"same"`, `"different"` or `"error"`.
      vmap_chunk_size: how many examples `torch.func.vmap` runs at once.
      output_shapes: declares the outputs instead of inferring them.
      mutable_argnums: positions of arguments that the module may write into.
      rng: the first argument of `apply` is a JAX key: `apply(key, variables, x)`.
      arguments: `"auto"` lends arguments, `"copy"` copies them, `"check"` checks every call.
      outputs: `"auto"`, `"copy"` or `"out"`: who writes results into XLA's memory.
      has_side_effect: run every call the program contains.
      name: a name that is the same in every process, needed for `jax.export` and serialised programs.
      compile: compile the module by torch's compiler, with its derivatives and batches.
      command_buffer: experimental. On CUDA, lets XLA capture calls in a CUDA graph.

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
    options = {option: value for option, value in locals().items() if option in option_names(DiffOptions, Options)}
    call, variables = functional(module, train=train, mutable=mutable, copy=copy)
    return torch2jax(call, **options), variables
