"""`torch2jax` with derivatives and batching."""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack

import jax
import numpy as np
import torch
from t2j_core import ArgumentError
from t2j_core.extend import (
    Options,
    P,
    Signature,
    TorchFn,
    TorchFunction,
    are_at,
    argument_paths,
    checked_examples,
    describe,
    functional,
    options_of,
    public,
    remember,
)

from ._keywords import DiffKeywords
from ._linearize import clones
from ._rules import Rules
from ._shared import DiffOptions, Shared


@public()
def torch2jax(
    fn: Callable[P, Any],
    *example_args: Any,
    example_kw: Mapping[str, Any] | None = None,
    depth: int | None = 2,
    nondiff_argnums: int | Sequence[int] | None = None,
    nondiff_mask: Any = None,
    output_shapes: Any = None,
    use_zeros: bool = True,
    use_torch_vjp: bool = True,
    residuals: Literal["auto", "recompute", "graph"] = "auto",
    vmap_method: Literal["auto", "vmap", "sequential", "expand_dims", "broadcast_all"] = "auto",
    vmap_randomness: Literal["same", "different", "error"] | None = None,
    vmap_chunk_size: int | None = None,
    mutable_argnums: int | Sequence[int] = (),
    rng: bool = False,
    arguments: Literal["auto", "copy", "check"] = "auto",
    outputs: Literal["auto", "copy", "out"] = "auto",
    has_side_effect: bool = False,
    name: str | None = None,
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
    options = Options(output_shapes, mutable_argnums, rng, outputs, has_side_effect, name, arguments)
    diff_options = DiffOptions(
        depth,
        nondiff_argnums,
        nondiff_mask,
        use_zeros,
        use_torch_vjp,
        residuals,
        vmap_method,
        vmap_randomness,
        vmap_chunk_size,
    )
    return DifferentiableFunction(fn, options, checked_examples(example_args, example_kw), diff_options)


def torch2jax_with_vjp(
    fn: Callable[P, Any],
    *example_args: Any,
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


class DifferentiableFunction(TorchFunction[P]):
    """A PyTorch function that JAX can call, differentiate and batch; made by `torch2jax`."""

    def __init__(
        self,
        fn: Callable[P, Any],
        options: Options,
        examples: tuple[tuple[Any, ...], dict[str, Any]] | None,
        diff_options: DiffOptions,
    ) -> None:
        self.diff_options = diff_options
        super().__init__(fn, options, examples)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "diff_options": self.diff_options}

    def _start(self) -> None:
        self._constants: dict[Any, tuple[bool, ...]] = {}
        super()._start()

    def explain(self) -> str:
        """What was decided for each signature that was used, and why: a text to print.

        As `t2j_core.TorchFunction.explain`, and how derivatives and batches are computed.

        >>> import jax, jax.numpy as jnp, torch
        >>> f = torch2jax(torch.sin)
        >>> _ = jax.jit(jax.grad(f))(1.0 * jnp.ones(()))
        >>> print(f.explain())
        sin(f32[]) -> (f32[])
          outputs: inferred by a run without data
          args[0]: lent, not copied
          output: copied (below 1048576 bytes)
          reverse mode: recompute (few operations on small tensors)
          forward mode: torch.func.jvp
          vmap: auto
        """
        return super().explain()

    def _explained(self, fn: TorchFn) -> list[str]:
        return [*super()._explained(fn), *_explained(str(fn.signature), fn.rules.shared)]

    def _option_groups(self) -> tuple[Any, ...]:
        return (*super()._option_groups(), self.diff_options)

    def _build(self, signature: Signature) -> TorchFn:
        fn = super()._build(signature)
        flat = fn.flat()
        if self.options.outputs == "out":
            flat = functools.partial(flat, out=None)
        paths = tuple(signature.operand_paths())
        shared = Shared(self.__name__, self.diff_options, self.options.rng, paths, is_random="random" in self._told)
        shared.goes_one_way = fn.signature.outputs.needs_no_values
        shared.lending = fn.lending if self.options.arguments == "check" else None
        written = [i for i, how in enumerate(fn.passes) if how != 0]
        fn.rules = Rules(clones(flat, written), self.diff_options.limit, shared)
        return fn

    def _bind(self, arrays: list[Any], key: Any, dtypes: Any, *, marked: bool = False) -> Any:
        if self.diff_options.nondiff_argnums or self.diff_options.nondiff_mask is not None:
            constants = self._constants.get(key) or remember(self._constants, key, self._find_constants(key))
            arrays = [
                jax.lax.stop_gradient(array) if constant else array
                for array, constant in zip(arrays, constants, strict=True)
            ]
        return super()._bind(arrays, key, dtypes, marked=marked)

    def _find_constants(self, key: Any) -> tuple[bool, ...]:
        paths = argument_paths(key)
        numbered = are_at("nondiff_argnums", self.diff_options.nondiff_argnums, paths, self.__name__)
        return tuple(map(operator.or_, numbered, self._masked(key)))

    def _masked(self, key: Any) -> list[bool]:
        """For each data leaf, whether `nondiff_mask` marks it."""
        tree, statics = key
        args, kwargs = jax.tree.unflatten(tree, list(range(len(statics))))
        mask = False if self.diff_options.nondiff_mask is None else self.diff_options.nondiff_mask
        mask = tuple(mask) if isinstance(mask, list) else mask
        try:
            if not isinstance(mask, (bool, tuple)):
                mask = (mask,)
            if not all(isinstance(leaf, (bool, np.bool_)) for leaf in jax.tree.leaves(mask)):
                raise ValueError
            full = jax.tree.map(lambda m, part: jax.tree.map(lambda _: bool(m), part), mask, args)
            flags = jax.tree.leaves((full, jax.tree.map(lambda _: False, kwargs)))
        except ValueError:
            raise ArgumentError(
                describe(
                    f"`nondiff_mask` does not match the arguments of {self.__name__}.",
                    expected=f"a tree of bools like {jax.tree.structure(args)}, or a prefix of it",
                    got=f"{jax.tree.structure(mask)}",
                    remedy="Give one bool per argument, or per leaf of an argument.",
                )
            ) from None
        return [flag for flag, static in zip(flags, statics, strict=True) if static is None]


_VMAPS = {
    "recorded value": "reverse mode of vmap",
    "recorded": "derivatives of vmap",
    "shown": "vmap of the values beside derivatives",
    "vjp": "vmap of reverse mode",
    "jvp": "vmap of forward mode",
    "derivative": "vmap of derivatives",
}


def _explained(signature: str, shared: Shared) -> list[str]:
    lines = [f"reverse mode{_of(label, signature)}: {what}" for label, what in shared.residuals.items()]
    if signature not in shared.forward_modes:
        lines.append("forward mode: torch.func.jvp")
    lines += [f"forward mode{_of(label, signature)}: {what}" for label, what in shared.forward_modes.items()]
    reason = shared.vmap_failures.get("value")
    lines.append(f"vmap: {shared.options.vmap_method}{'' if reason is None else f', one after another ({reason})'}")
    failures = {title: shared.vmap_failures[kind] for kind, title in _VMAPS.items() if kind in shared.vmap_failures}
    return [*lines, *(f"{title}: one after another ({why})" for title, why in failures.items())]


def _of(label: str, signature: str) -> str:
    return label.removeprefix(signature) if label.startswith(signature) else f" of {label}"


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
