"""`module2jax`: an `nn.Module` as a pure function of its parameters and buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
from torch.nn.parameter import is_lazy

from .._base.errors import ArgumentError, DTypeError, describe
from .._base.public import public
from .._modules.variables import NUMBERS, Layout
from .convert import j2t, t2j
from .function import TorchFunction
from .module_call import ModuleCall, ModuleOptions
from .options import Arguments, Options, Results, option_names
from .torch2jax import torch2jax

Variables = dict[str, dict[str, Any]]


@public()
def module2jax(
    module: torch.nn.Module,
    *,
    train: bool | None = None,
    mutable: bool = False,
    copy: bool = False,
    output_shapes: Any = None,
    mutable_argnums: int | Sequence[int] = (),
    rng: bool = False,
    arguments: Arguments = "auto",
    outputs: Results = "auto",
    has_side_effect: bool = False,
    name: str | None = None,
    compile: bool = False,
    command_buffer: bool = False,
) -> tuple[TorchFunction[...], Variables]:
    """An `nn.Module` as a pure JAX function and its variables.

    Args:
      module: any module; it is not changed. Tied parameters stay tied: they appear once, under their first name.
      train: run in training (True) or evaluation (False) mode; None keeps the mode the module is in.
      mutable: also return the new buffers, such as the running statistics of BatchNorm. Without it changes of
        buffers are dropped. Derivatives do not flow through the buffers of a call to those of the call before.
      copy: give the variables memory of their own. By default they share the module's: see below.
      output_shapes: declares the outputs instead of inferring them. Like all that follow, an option of `torch2jax`.
      mutable_argnums: positions of arguments that the module may write into.
      rng: the first argument of `apply` is a JAX key: `apply(key, variables, x)`.
      arguments: `"auto"` lends arguments, `"copy"` copies them, `"check"` checks every call.
      outputs: `"auto"`, `"copy"` or `"out"`: who writes results into XLA's memory.
      has_side_effect: run every call the program contains.
      name: a name that is the same in every process, needed for `jax.export` and serialised programs.
      compile: compile the module by torch's compiler.
      command_buffer: experimental. On CUDA, lets XLA capture calls in a CUDA graph.

    Returns:
      `(apply, variables)`: `variables` is `{"params": {name: array}, "buffers": {name: array}}`;
      `apply(variables, *args, **kwargs)` calls the module with them and returns its output, or `(output, buffers)` if
      `mutable`. Variables are arrays of the module's shapes, or numbers where the shape is `()`. Calls may run on
      several devices or threads at once. Each begins with the module as it was when it was wrapped: what a call writes
      into attributes and containers (caches, hooks, lists of outputs) is gone after it.

    Raises:
      ArgumentError: if `module` is not a module, has parameters without data, or cannot be copied; from `apply`, for
        variables of a wrong name or shape.

    Note:
      Without `copy=True` the variables lie over the module's own memory. Whoever writes into it with torch, as
      `optimizer.step()` does, changes JAX arrays, which should never change: train the module in one of the two only,
      or copy. (64-bit values while x64 is off, and memory that is not aligned to 64 bytes, or to 16 on a GPU, such as
      weights mapped from a safetensors file, are always copied.)

    >>> import jax, jax.numpy as jnp, torch
    >>> apply, variables = module2jax(torch.nn.Linear(3, 2))
    >>> jax.jit(apply)(variables, jnp.ones((4, 3))).shape
    (4, 2)
    """
    options = {option: value for option, value in locals().items() if option in option_names(Options)}
    call, variables = functional(module, train=train, mutable=mutable, copy=copy)
    return torch2jax(call, **options), variables


def functional(
    module: torch.nn.Module, *, train: bool | None = None, mutable: bool = False, copy: bool = False
) -> tuple[Callable[..., Any], Variables]:
    """The torch function behind `module2jax`, which takes the variables first, and the variables as JAX arrays."""
    _check_module("module2jax", module)
    _check_option("train", train, True, False, None)
    _check_option("mutable", mutable, True, False)
    _check_option("copy", copy, True, False)
    variables = {
        "params": {name: _array(tensor, copy, name) for name, tensor in module.named_parameters()},
        "buffers": {name: _array(tensor, copy, name) for name, tensor in module.named_buffers()},
    }
    return ModuleCall(module, ModuleOptions(train, mutable, copy)), variables


def _check_module(function: str, module: object) -> None:
    """Raise unless `module` is a module whose parameters and buffers hold data."""
    if not isinstance(module, torch.nn.Module):
        remedy = "Wrap a function with `torch2jax`." if function == "module2jax" else "Pass the module first."
        if isinstance(module, type):
            remedy = f"Make a module first: `{function}({module.__name__}(...))`."
        raise ArgumentError(
            describe(
                f"`{function}` takes a module.",
                expected="torch.nn.Module",
                got=f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__,
                remedy=remedy,
            )
        )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            what = f"{name!r} of the module {type(module).__name__} is not initialised: its shape is not known yet."
            remedy = "Call the module on an example first, such as `module(torch.ones(1, 3))`, which initialises it."
        elif tensor.is_meta:
            what = f"{name!r} of the module {type(module).__name__} is on the meta device, and holds no data."
            remedy = 'Call `module.to_empty(device="cpu")`, and load its weights with `module.load_state_dict(...)`.'
        else:
            continue
        raise ArgumentError(describe(what, expected="parameters and buffers with data", remedy=remedy))


def _check_option(name: str, value: object, *choices: bool | None) -> None:
    if not any(value is choice for choice in choices):
        raise ArgumentError(
            describe(
                f"`{name}` is not valid.",
                expected=" or ".join(map(repr, choices)),
                got=repr(value),
                remedy="Choose one.",
            )
        )


def _array(tensor: torch.Tensor, is_copied: bool, name: str) -> jax.Array:
    try:
        return t2j(tensor.detach().clone(memory_format=torch.contiguous_format) if is_copied else tensor)
    except (ArgumentError, DTypeError) as error:
        error.add_note(f"It is the parameter or buffer {name!r} of the module.")
        raise


@public()
def load_variables(module: torch.nn.Module, variables: Mapping[str, Mapping[str, Any]]) -> None:
    """Write variables back into the module they came from, so that `state_dict()` saves them.

    Args:
      module: the module that was given to `module2jax`, or one of the same architecture. It gets memory of its own.
      variables: `{"params": {...}, "buffers": {...}}` of concrete JAX arrays, NumPy arrays, tensors or numbers; some
        may be missing.

    Raises:
      ArgumentError: for a name or shape the module does not have; nothing is written then.

    >>> import jax, torch
    >>> layer = torch.nn.Linear(1, 1)
    >>> apply, variables = module2jax(layer)
    >>> load_variables(layer, jax.tree.map(jax.numpy.ones_like, variables))
    >>> layer.bias.tolist()
    [1.0]
    """
    _check_module("load_variables", module)
    Layout(module).check_some(variables)
    owned: dict[str, dict[str, torch.Tensor]] = {
        "params": dict(module.named_parameters()),
        "buffers": dict(module.named_buffers()),
    }
    pairs = []
    for part, values in variables.items():
        for name, value in values.items():
            target = owned[part][name]
            pairs.append((target, _tensor(value, target.dtype)))
    for target, tensor in pairs:  # memory of its own: the module's may be that of arrays of `module2jax`
        target.data = tensor.detach().to(target.device, target.dtype, copy=True)


def _tensor(value: object, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, NUMBERS):
        return torch.full((), value, dtype=dtype)
    return j2t(value) if isinstance(value, jax.Array) else torch.as_tensor(np.asarray(value))
