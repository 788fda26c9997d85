"""`torch2jax` with derivatives and batching."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

from t2j_core.extend import (
    Arguments,
    Options,
    P,
    Results,
    checked_examples,
    public,
    taken,
)

from .._base.keywords import DiffKeywords
from .._base.options import DiffOptions, Randomness, ResidualsOption, VmapMethod
from .builder import DifferentiableBuilder
from .function import DifferentiableFunction


@public()
def torch2jax(
    fn: Callable[P, Any],
    *example_args: object,
    example_kw: Mapping[str, Any] | None = None,
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
) -> DifferentiableFunction[P]:
    """Wrap a PyTorch function so that JAX can call, differentiate and batch it.

    As `t2j_core.torch2jax`, whose options work here too, but with derivatives in both modes and batching, computed by
    PyTorch's autograd and `torch.func`.

    Args:
      fn: any callable on torch tensors. Arguments and outputs may be pytrees.
      *example_args: optional examples of the arguments.
      example_kw: examples of the keyword arguments.
      depth: how many times the function may be differentiated; 0 for forward only, None for no limit. The transpose
        of a linear function is no derivative.
      nondiff_argnums: positions of arguments that are constants to differentiation: their gradients are zero, and are
        not computed.
      nondiff_mask: the same leaf by leaf: a tree like the tuple of arguments with True where a leaf is a constant. A
        prefix of that tree will do.
      output_shapes: declares the outputs, as in `t2j_core.torch2jax`.
      use_zeros: accepted for `wrap_torch2jax`; gradients of constants are always zeros, as JAX requires.
      use_torch_vjp: accepted for `wrap_torch2jax`; `torch.autograd` is used, and inside `torch.func.vmap`
        `torch.func.vjp`.
      residuals: what the backward gets from the forward. `"auto"` keeps torch's autograd graph alive, so that the
        forward runs once, or runs a quick function again; `"recompute"` always runs it again; `"graph"` traces the
        function once and makes the saved tensors JAX arrays.
      vmap_method: `"auto"` batches with `torch.func.vmap`, or one call that loops where that fails; `"vmap"` and
        `"sequential"` are these two; `"expand_dims"` and `"broadcast_all"` give arguments a leading axis of size 1
        or of the batch, for functions that take leading axes anyway. Derivatives are batched with `"auto"` then.
      vmap_randomness: `"same"` or `"different"` random numbers for the examples of a `torch.func.vmap`, or `"error"`.
        None: each example draws what it would draw alone, one after another.
      vmap_chunk_size: how many examples `torch.func.vmap` runs at once; None for all.
      mutable_argnums: as in `t2j_core.torch2jax`, as are the following.
      rng: the first argument is a JAX key; derivatives draw the numbers that the value drew.
      arguments: `"auto"`, `"copy"` or `"check"`.
      outputs: `"auto"`, `"copy"` or `"out"`.
      has_side_effect: run every call the program contains.
      name: a name that is the same in every process.
      compile: compile the function for each signature, with its derivatives in reverse mode and its batches. Its Python
        runs where it is traced, and not at calls. What cannot be traced or compiled runs as it is, with a warning.
      command_buffer: experimental. On CUDA, lets XLA capture calls in a CUDA graph, those of derivatives and batches
        too. Derivatives keep no autograd graphs then.

    Returns:
      The wrapped function. `f.explain()` tells how its outputs, derivatives and batches are computed.

    Raises:
      ArgumentError: for options or examples that do not fit.
      DepthError: when a derivative of a higher order than `depth` is traced.
      NonDifferentiableError: when PyTorch has no forward-mode derivative (reverse mode may work), or no second one.
      TransformError: when JAX needs the transpose of a function that is not linear, as in `jax.linear_transpose` and
        `jax.scipy.sparse.linalg.gmres`.

    >>> import jax, jax.numpy as jnp, torch
    >>> f = torch2jax(lambda x: (x**3).sum())
    >>> jax.grad(f)(jnp.arange(3.0)).tolist()
    [0.0, 3.0, 12.0]
    >>> jax.vmap(jax.hessian(f))(jnp.ones((2, 1))).tolist()
    [[[6.0]], [[6.0]]]
    """
    options, diff_options = taken(Options, locals()), taken(DiffOptions, locals())
    builder = DifferentiableBuilder(fn, options, diff_options)
    return DifferentiableFunction(builder, checked_examples(example_args, example_kw))


def torch2jax_with_vjp(
    fn: Callable[P, Any],
    *example_args: object,
    example_kw: Mapping[str, Any] | None = None,
    **options: Unpack[DiffKeywords],
) -> DifferentiableFunction[P]:
    """The deprecated name of `torch2jax`.

    >>> import warnings, jax.numpy as jnp, torch
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     f = torch2jax_with_vjp(torch.sin)
    >>> f(jnp.zeros(2)).tolist()
    [0.0, 0.0]
    """
    warnings.warn("`torch2jax_with_vjp` is now `torch2jax`, with the same arguments.", DeprecationWarning, stacklevel=2)
    return torch2jax(fn, *example_args, example_kw=example_kw, **options)
