"""`torch2jax` and `module2jax` for sharded arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Unpack

import torch
from t2j_core import TorchFunction
from t2j_core.extend import (
    Options,
    P,
    check_options,
    checked_examples,
    functional,
    hide_frames,
    option_names,
    parameters_of,
    public,
    taken,
)

from . import _autodiff
from ._builder import ShardedBuilder
from ._options import Keywords, wanted_sharding, with_lock
from ._specs import SpecTree
from ._wanted import AnyMesh

hide_frames(__file__)

_OPTIONS = (*option_names(Options), *_autodiff.OPTIONS)
_PARAMETERS = parameters_of(Keywords, *_autodiff.OPTION_GROUPS)


@public(_OPTIONS, parameters=_PARAMETERS)
def torch2jax(
    fn: Callable[P, Any],
    *example_args: object,
    example_kw: Mapping[str, Any] | None = None,
    out_specs: SpecTree = None,
    in_specs: SpecTree = None,
    mesh: AnyMesh | None = None,
    output_sharding_spec: SpecTree = None,
    lock: bool | AbstractContextManager[Any] = False,
    **options: Unpack[Keywords],
) -> TorchFunction[P]:
    """Wrap a PyTorch function so that JAX can call it on sharded arrays: once per shard, each on its own device.

    As `t2j_autodiff.torch2jax` where that is installed, else `t2j_core.torch2jax`, with specs that tell how the call
    is split. The function sees one shard of each argument and returns one shard of each output. Gradients with
    respect to replicated arguments are summed over the devices. Nothing is gathered unless the specs say so.

    Args:
      fn: any callable on torch tensors. Arguments and outputs may be pytrees.
      *example_args: optional examples of the arguments, with their global shapes. Where they are sharded arrays, they
        say what `in_specs` does not.
      example_kw: examples of the keyword arguments.
      out_specs: how the outputs are split: a `jax.sharding.PartitionSpec`, or a tree of them that is a prefix of the
        outputs. Without it, the function is called as it stands: on the shards inside `jax.shard_map`, on whole arrays
        elsewhere.
      in_specs: how the arguments are split: one spec for all, or a tuple with one (or a tree of them) for each
        positional argument; keyword arguments are replicated then. Without it they are split as they arrive, which is
        known on Explicit mesh axes, and on Auto axes eagerly.
      mesh: the mesh; None for that of `jax.set_mesh`, or of the arguments.
      output_sharding_spec: another name of `out_specs`, for code written for `wrap_torch2jax`.
      lock: True where `fn` must not run on two devices at once, because it has state of its own; or a lock, to share
        between functions. Modules need none with `module2jax`.
      **options: those of `t2j_autodiff.torch2jax`. `output_shapes` declares global shapes. With `rng=True` every
        shard draws numbers of its own.

    Returns:
      The wrapped function. Inside `jax.shard_map` over the axes of its specs it takes shards and returns shards.
      `f.explain()` tells how its calls were split.

    Raises:
      ShardingError: at trace time, where a spec does not fit its array, the tree or the mesh.
      ImportError: for derivatives without t2j-autodiff: `pip install "t2j-dist[autodiff]"`.

    >>> import jax, jax.numpy as jnp, torch
    >>> from jax.sharding import PartitionSpec as P
    >>> mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    >>> f = torch2jax(lambda x, w: x @ w, in_specs=(P("data"), P()), out_specs=P("data"), mesh=mesh)
    >>> f(jnp.ones((8, 3)), jnp.ones((3, 2))).sharding.spec[0]
    'data'
    """
    check_options("torch2jax", options, _OPTIONS)
    core = taken(Options, options)
    wanted = wanted_sharding(out_specs, output_sharding_spec, in_specs, mesh, has_key=core.rng)
    of_autodiff = {name: value for name, value in options.items() if name in _autodiff.OPTIONS}
    local = _autodiff.builder_of(with_lock(fn, lock), core, of_autodiff)
    builder = ShardedBuilder.over(local, wanted)
    function: TorchFunction[P] = _autodiff.function_class(builder, checked_examples(example_args, example_kw))
    return function


def torch2jax_without_vjp(fn: Callable[P, Any], *example_args: object, **options: Any) -> TorchFunction[P]:
    """`torch2jax` without derivatives: with `depth=0`.

    >>> import jax.numpy as jnp, torch
    >>> torch2jax_without_vjp(torch.sin)(jnp.zeros(2)).tolist()
    [0.0, 0.0]
    """
    return torch2jax(fn, *example_args, **{**options, "depth": 0})


def torch2jax_with_vjp(fn: Callable[P, Any], *example_args: object, **options: Any) -> TorchFunction[P]:
    """The deprecated name of `torch2jax`.

    >>> import warnings, jax.numpy as jnp, torch
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     f = torch2jax_with_vjp(torch.sin)
    >>> f(jnp.zeros(2)).tolist()
    [0.0, 0.0]
    """
    warnings.warn("`torch2jax_with_vjp` is now `torch2jax`, with the same arguments.", DeprecationWarning, stacklevel=2)
    return torch2jax(fn, *example_args, **options)


@public(_OPTIONS, parameters=_PARAMETERS)
def module2jax(
    module: torch.nn.Module,
    *,
    train: bool | None = None,
    mutable: bool = False,
    copy: bool = False,
    out_specs: SpecTree = None,
    in_specs: SpecTree = None,
    mesh: AnyMesh | None = None,
    output_sharding_spec: SpecTree = None,
    lock: bool | AbstractContextManager[Any] = False,
    **options: Unpack[Keywords],
) -> tuple[TorchFunction[...], dict[str, dict[str, Any]]]:
    """An `nn.Module` as a pure JAX function of sharded arrays, and its variables.

    As `t2j_autodiff.module2jax`. Devices run it at the same time without a lock: each call has a module of its own.

    Args:
      module: any module; it is not changed.
      train: run in training (True) or evaluation (False) mode; None keeps the mode the module is in.
      mutable: also return the new buffers, such as the running statistics of BatchNorm.
      copy: give the variables memory of their own. By default they lie over the module's, so that a torch optimizer
        which steps on the module changes them: see `t2j_core.module2jax`.
      out_specs: how the outputs are split, as in `torch2jax`.
      in_specs: how the arguments are split. The first is for the variables.
      mesh: the mesh; None for that of `jax.set_mesh`, or of the arguments.
      output_sharding_spec: another name of `out_specs`.
      lock: as in `torch2jax`. Modules need none.
      **options: those of `t2j_autodiff.torch2jax`, as in `torch2jax`.

    Returns:
      `(apply, variables)`.
      The variables are `{"params": {name: array}, "buffers": {name: array}}`. The arrays are on the module's device,
      and follow other arguments to a mesh, as new arrays of JAX do: at each call. `jax.device_put` them to the mesh
      where that is to happen once.

    Raises:
      ArgumentError: if `module` is not a module, has parameters without data, or cannot be copied; from `apply`, for
        variables of a wrong name or shape.

    >>> import jax, jax.numpy as jnp, torch
    >>> from jax.sharding import NamedSharding, PartitionSpec as P
    >>> mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    >>> linear = torch.nn.Linear(3, 1)
    >>> apply, variables = module2jax(linear, in_specs=(P(), P("data")), out_specs=P("data"), mesh=mesh)
    >>> variables = jax.device_put(variables, NamedSharding(mesh, P()))
    >>> apply(variables, jnp.ones((8, 3))).shape
    (8, 1)
    """
    call, variables = functional(module, train=train, mutable=mutable, copy=copy)
    function = torch2jax(
        call,
        out_specs=out_specs,
        in_specs=in_specs,
        mesh=mesh,
        output_sharding_spec=output_sharding_spec,
        lock=lock,
        **options,
    )
    return function, variables
