"""`torch2jax`: how users make a wrapper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._base.public import public
from .builder import CallBuilder
from .function import P, TorchFunction
from .options import Arguments, Options, Results, checked_examples, taken


@public()
def torch2jax(
    fn: Callable[P, Any],
    *example_args: object,
    example_kw: Mapping[str, Any] | None = None,
    output_shapes: Any = None,
    mutable_argnums: int | Sequence[int] = (),
    rng: bool = False,
    arguments: Arguments = "auto",
    outputs: Results = "auto",
    has_side_effect: bool = False,
    name: str | None = None,
    compile: bool = False,
    command_buffer: bool = False,
) -> TorchFunction[P]:
    """Wrap a PyTorch function so that JAX can call it, eagerly and under `jax.jit`, without copying its arguments.

    Args:
      fn: any callable on torch tensors. Arguments and outputs may be pytrees. Under `jit` it must be pure, as every
        JAX function: XLA may merge, hoist or drop calls.
      *example_args: optional examples of the arguments (tensors, arrays, `jax.ShapeDtypeStruct`), which check the
        function now instead of at the first call, and tell torch dtypes that JAX cannot (`int64` while x64 is off).
        Where the outputs can be inferred only on data, their values are tried first.
      example_kw: examples of the keyword arguments.
      output_shapes: declares the outputs instead of inferring them: a pytree of `Size`, tuples of int,
        `jax.ShapeDtypeStruct`, arrays or tensors. `fn` is then not run before the first call.
      mutable_argnums: positions of arguments that `fn` may write into. It must return what it has written. If the
        caller donates the argument to `jax.jit`, the update happens in place.
      rng: the first argument of the wrapped function is a JAX key, from which torch's random numbers come in the
        call; `fn` gets the other arguments.
      arguments: `"auto"` lends arguments: a tensor lies over XLA's memory. The first call of each signature (and now
        and then a later one) works on copies, which are compared afterwards; an argument that `fn` writes into or keeps
        is copied at every call from then on. `"copy"` copies all arguments at every call. `"check"` checks every call,
        and raises where `fn` writes into an argument or keeps one.
      outputs: `"copy"` copies results to XLA's memory; `"out"` hands the memory to `fn` as its argument `out=`;
        `"auto"` makes the operation that produces a large result write there itself, and copies the others.
      has_side_effect: run every call the program contains. The order of calls stays open. In a program of several
        devices the first runs it, and inside `jax.shard_map` each.
      name: a name that is the same in every process, needed for `jax.export` and serialised programs.
      compile: compile the function by torch's compiler for the shapes of each signature. It is traced first: its Python
        runs then, and not at calls. What cannot be traced or compiled runs as it is, with a warning.
      command_buffer: experimental. On CUDA, lets XLA capture calls of compiled programs in a CUDA graph, together with
        its own kernels. The graph is launched again without `fn`'s Python. No effect elsewhere.

    Returns:
      The wrapped function. Arrays, tracers and tensors among its arguments are data; all other leaves are constants
      and must be hashable. New shapes, dtypes and constants just work; each is inferred and compiled once.

    Raises:
      ArgumentError: for options or examples that do not fit.
      Exception: whatever `fn` raises on the examples, unchanged. The wrapped function raises the errors of `fn` in the
        same way, and a `T2jError` for arguments and outputs that JAX and torch cannot exchange.

    >>> import jax, jax.numpy as jnp, torch
    >>> f = torch2jax(lambda x, y: torch.sin(x) @ y)
    >>> jax.jit(f)(jnp.ones((2, 3)), jnp.ones((3, 4))).shape
    (2, 4)
    """
    options = taken(Options, locals())
    return TorchFunction(CallBuilder(fn, options), checked_examples(example_args, example_kw))


torch2jax_without_vjp = torch2jax
