"""`torch2jax` for sharded arrays."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from typing import Any

import jax
import numpy as np
import torch
from t2j_core import ArgumentError, TorchFunction
from t2j_core.extend import (
    CallTree,
    Leaf,
    Options,
    Outputs,
    P,
    TorchFn,
    checked_examples,
    declared_outputs,
    describe,
    functional,
    heading,
    hide_frames,
    leaves_of,
    options_of,
    public,
    remember,
    split,
)

from ._plan import AnyMesh, Plan, Wanted, decide, local_leaves
from ._specs import check_specs

try:
    import t2j_autodiff
    from t2j_autodiff.extend import DiffOptions
except ModuleNotFoundError as error:
    if error.name != "t2j_autodiff":
        raise
    _HAS_AUTODIFF = False
else:
    _HAS_AUTODIFF = True

hide_frames(__file__)

_OF_AUTODIFF = (
    *("depth", "nondiff_argnums", "nondiff_mask", "use_zeros", "use_torch_vjp", "residuals"),
    *("vmap_method", "vmap_randomness", "vmap_chunk_size"),
)
_OF_CORE = tuple(field.name for field in fields(Options))
_OPTIONS = _OF_CORE + _OF_AUTODIFF


@public(_OPTIONS)
def torch2jax(
    fn: Callable[P, Any],
    *example_args: Any,
    example_kw: Mapping[str, Any] | None = None,
    out_specs: Any = None,
    in_specs: Any = None,
    mesh: AnyMesh | None = None,
    output_sharding_spec: Any = None,
    lock: bool | AbstractContextManager[Any] = False,
    **options: Any,
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
    if out_specs is not None and output_sharding_spec is not None:
        raise _twice()
    out_specs = output_sharding_spec if out_specs is None else out_specs
    _check_options(options)
    core = Options(**{name: options[name] for name in _OF_CORE if name in options})
    wanted = _wanted(out_specs, in_specs, mesh, has_key=core.rng)
    lock = bool(lock) if isinstance(lock, np.bool_) else lock
    if not isinstance(lock, (bool, AbstractContextManager)):
        raise _no_lock(lock)
    if lock is not False:
        fn = _one_at_a_time(fn, threading.Lock() if lock is True else lock)
    examples = checked_examples(example_args, example_kw)
    if not _HAS_AUTODIFF:
        return ShardedFunction(fn, core, examples, wanted=wanted)
    of_autodiff = {name: options[name] for name in _OF_AUTODIFF if name in options}
    return DifferentiableShardedFunction(fn, core, examples, DiffOptions(**of_autodiff), wanted=wanted)


def torch2jax_without_vjp(fn: Callable[P, Any], *example_args: Any, **options: Any) -> TorchFunction[P]:
    """`torch2jax` without derivatives: with `depth=0`.

    >>> import jax.numpy as jnp, torch
    >>> torch2jax_without_vjp(torch.sin)(jnp.zeros(2)).tolist()
    [0.0, 0.0]
    """
    return torch2jax(fn, *example_args, **{**options, "depth": 0})


def torch2jax_with_vjp(fn: Callable[P, Any], *example_args: Any, **options: Any) -> TorchFunction[P]:
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


@public((*options_of(torch2jax), *_OPTIONS))
def module2jax(
    module: torch.nn.Module, *, train: bool | None = None, mutable: bool = False, copy: bool = False, **options: Any
) -> tuple[TorchFunction[...], dict[str, dict[str, Any]]]:
    """An `nn.Module` as a pure JAX function of sharded arrays, and its variables.

    As `t2j_autodiff.module2jax`. Devices run it at the same time without a lock: each call has a module of its own.

    Args:
      module: any module; it is not changed.
      train: run in training (True) or evaluation (False) mode; None keeps the mode the module is in.
      mutable: also return the new buffers, such as the running statistics of BatchNorm.
      copy: give the variables memory of their own. By default they lie over the module's, so that a torch optimizer
        which steps on the module changes them: see `t2j_core.module2jax`.
      **options: those of `torch2jax`. The first of `in_specs` is for the variables.

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
    return torch2jax(call, **options), variables


class ShardedFunction(TorchFunction[P]):
    """A PyTorch function that JAX can call on sharded arrays; made by `torch2jax`."""

    _is_of_shard = False

    def __init__(self, *args: Any, wanted: Wanted | None) -> None:
        self._wanted = wanted
        super().__init__(*args)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_wanted": self._wanted}

    def _start(self) -> None:
        self._hinted: dict[Any, ShardedFunction[P]] = {}  # for eager calls, by the shardings of the arguments
        self._of_shards: dict[Any, ShardedFunction[P]] = {}  # what runs on a shard, by the shapes of its outputs
        self._calls: dict[tuple[TorchFn, tuple[str, ...]], None] = {}  # what ran on a shard, and how calls were split
        super()._start()

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        wanted = self._wanted
        if wanted is not None and wanted.in_specs is None and not wanted.is_eager:
            eager = wanted.with_hints(split(args, kwargs)[0], is_eager=True)
            if eager is not wanted:
                return self._for_arrays(eager)(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def _option_groups(self) -> tuple[Any, ...]:
        return (*super()._option_groups(), *filter(None, [self._wanted]))

    def _explained_calls(self) -> list[str]:
        calls = ([heading(fn), *lines, *self._explained(fn)] for fn, lines in list(self._calls))
        return [*super()._explained_calls(), *map("\n  ".join, calls)]

    def _explained(self, fn: TorchFn) -> list[str]:
        plain = [] if self._wanted is not None else ["sharding: a plain call (no `out_specs`)"]
        return [*plain, *super()._explained(fn)]

    def _note(self, plan: Plan | None, call_tree: CallTree, operands: Sequence[Leaf], fn: TorchFn) -> None:
        """Remember for `explain` how a call was split."""
        no_mesh = ("sharding: a plain call (no mesh)",)
        lines = no_mesh if plan is None else plan.explained(call_tree, operands, fn.signature.outputs)
        remember(self._calls, (fn, lines), None)

    def _for_arrays(self, wanted: Wanted) -> ShardedFunction[P]:
        known = self._hinted.get(wanted.hints)
        return known or remember(self._hinted, wanted.hints, self._variant(_wanted=wanted))

    def _check_arguments(self, call_tree: CallTree, operands: Sequence[Leaf]) -> None:
        if not self._is_of_shard:  # whole arguments were checked, and shards are smaller
            super()._check_arguments(call_tree, operands)

    def _bind_flat(self, arrays: Sequence[Any], call_tree: CallTree, dtypes: Any) -> tuple[Outputs, Sequence[Any]]:
        if self._wanted is None:
            return super()._bind_flat(arrays, call_tree, dtypes)
        plan = decide(self.__name__, self._wanted, call_tree, arrays)
        whole = leaves_of(arrays, dtypes, self.__name__, call_tree)
        self._check_arguments(call_tree, whole)
        operands = local_leaves(plan, call_tree, whole)
        local = self._of_shard(plan, operands)
        arrays = arrays if plan is None else plan.arranged(arrays)
        fn = local._torch_fn(call_tree, operands)
        self._note(plan, call_tree, whole, fn)
        if plan is None or not plan.axes:
            return local._bind_flat(arrays, call_tree, dtypes)
        outputs = fn.signature.outputs

        def of_shard(*shards: Any) -> tuple[Any, ...]:
            own = self._with_own_key(shards, plan)
            return tuple(local._bind_flat(own, call_tree, dtypes)[1])

        sharded = jax.shard_map(
            of_shard,
            mesh=None if plan.in_context else plan.mesh,
            in_specs=plan.in_specs,
            out_specs=plan.out_specs(outputs),
            axis_names=plan.axes,
        )
        return outputs, sharded(*arrays)

    def _of_shard(self, plan: Plan | None, operands: tuple[Leaf, ...]) -> ShardedFunction[P]:
        """The function that runs on one shard: this one, with the outputs of a shard if they are declared."""
        declared: tuple[Leaf, ...] | None = None
        if plan is not None and self.options.output_shapes is not None:
            outputs = declared_outputs(self.options.output_shapes, operands)
            shapes = plan.declared(outputs)
            declared = tuple(replace(leaf, shape=shape) for leaf, shape in zip(outputs.leaves, shapes, strict=True))
        known = self._of_shards.get(declared)
        if known is None:
            options = self.options
            if declared is not None:
                like = [torch.empty(leaf.shape, dtype=leaf.torch_dtype, device="meta") for leaf in declared]
                options = replace(options, output_shapes=jax.tree.unflatten(outputs.tree, like))
            shard = self._variant(_wanted=None, _is_of_shard=True, options=options)
            known = remember(self._of_shards, declared, shard)
        return known

    def _with_own_key(self, shards: tuple[Any, ...], plan: Plan) -> list[Any]:
        """The operands, with a JAX key of this shard's own in front if they begin with one."""
        if not self.options.rng:
            return list(shards)
        data, *rest = shards
        key = jax.random.wrap_key_data(data, impl="threefry2x32" if data.shape == (2,) else "rbg")
        for axis in sorted(plan.varying):
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        return [jax.random.key_data(key), *rest]

    def _check_examples(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._wanted is not None and self._wanted.in_specs is None:
            self._wanted = self._wanted.with_hints(_arrays((args, kwargs)), is_eager=False)
        super()._check_examples(args, kwargs)

    def _check_signature(self, call_tree: CallTree, operands: tuple[Leaf, ...]) -> None:
        wanted = self._wanted
        if wanted is not None and wanted.in_specs is None and not wanted.hints:
            return  # how examples without shardings are split is known when they arrive
        self._check_arguments(call_tree, operands)
        if wanted is None:
            super()._check_signature(call_tree, operands)
            return
        plan = decide(self.__name__, wanted, call_tree, operands)
        local = local_leaves(plan, call_tree, operands)
        fn = self._of_shard(plan, local)._torch_fn(call_tree, local)
        if plan is not None and plan.axes:
            plan.out_specs(fn.signature.outputs)
        self._note(plan, call_tree, operands, fn)


if _HAS_AUTODIFF:

    class DifferentiableShardedFunction(ShardedFunction[P], t2j_autodiff.DifferentiableFunction[P]):
        """A `ShardedFunction` that JAX can differentiate and batch; made by `torch2jax`."""


def _arrays(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]


def _wanted(out_specs: Any, in_specs: Any, mesh: AnyMesh | None, *, has_key: bool) -> Wanted | None:
    check_specs("out_specs", out_specs)
    check_specs("in_specs", in_specs)
    if not isinstance(mesh, AnyMesh | None):
        raise ArgumentError(
            describe(
                "`mesh` is no mesh.",
                expected="a `jax.sharding.Mesh`, such as `jax.make_mesh` returns, or None",
                got=repr(mesh),
                remedy="Pass the mesh itself, not a sharding or its axis names.",
            )
        )
    if out_specs is not None:
        return Wanted(out_specs, in_specs, mesh, has_key=has_key)
    if in_specs is None and mesh is None:
        return None
    raise ArgumentError(
        describe(
            "`in_specs` and `mesh` need `out_specs`: how the outputs are split cannot be told from the inputs.",
            expected='`out_specs`, such as `P("data")`, or `P()` for replicated outputs',
            got="None",
            remedy="Pass `out_specs=`.",
        )
    )


def _check_options(options: dict[str, Any]) -> None:
    unknown = [name for name in options if name not in (*_OF_CORE, *_OF_AUTODIFF)]
    if unknown:
        raise TypeError(f"torch2jax() got an unexpected keyword argument '{unknown[0]}'")
    forward_only = isinstance(options.get("depth"), int) and options["depth"] == 0
    differentiates = [name for name in options if name in _OF_AUTODIFF and not (name == "depth" and forward_only)]
    if differentiates and not _HAS_AUTODIFF:
        raise ImportError(
            f"`{differentiates[0]}` needs t2j-autodiff, which is not installed. "
            'Install it with `pip install "t2j-dist[autodiff]"`, or wrap with `depth=0` for calls without derivatives.',
            name="t2j_autodiff",
        )


def _twice() -> ArgumentError:
    return ArgumentError(
        describe(
            "`out_specs` and `output_sharding_spec` are two names of one option, and both were given.",
            remedy="Pass `out_specs` only.",
        )
    )


def _no_lock(lock: object) -> ArgumentError:
    return ArgumentError(
        describe(
            "`lock` is no lock.",
            expected="True, False, or a lock such as `threading.Lock()`",
            got=repr(lock),
            remedy="Pass `lock=True` for a lock of the function's own.",
        )
    )


def _one_at_a_time(fn: Callable[..., Any], lock: AbstractContextManager[Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return fn(*args, **kwargs)

    return locked
