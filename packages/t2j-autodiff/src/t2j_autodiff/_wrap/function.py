"""`DifferentiableFunction`: the wrapper that users hold."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from t2j_core import ArgumentError
from t2j_core.extend import (
    CallTree,
    Options,
    P,
    Signature,
    TorchFn,
    TorchFunction,
    are_at,
    describe,
    remember,
)

from .._base.decisions import Shared
from .._base.options import DiffOptions
from .._rules.clones import clones
from .._rules.function_rules import rules_of
from .._rules.torch_call import CallRules


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

        >>> from t2j_autodiff import torch2jax
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
        return [*super()._explained(fn), *_explained(str(fn.signature), rules_of(fn).shared)]

    def _option_groups(self) -> tuple[Any, ...]:
        return (*super()._option_groups(), self.diff_options)

    def _build(self, signature: Signature) -> TorchFn:
        fn = super()._build(signature)
        flat = fn.flat_function()
        if self.options.outputs == "out":
            flat = functools.partial(flat, out=None)
        paths = tuple(signature.operand_paths())
        shared = Shared(self.__name__, self.diff_options, self.options.rng, paths, is_random="random" in self._told)
        shared.goes_one_way = fn.signature.outputs.needs_no_values
        shared.lending = fn.lending if self.options.arguments == "check" else None
        written = [i for i, how in enumerate(fn.passes) if how != 0]
        fn.rules = CallRules(clones(flat, written), self.diff_options.limit, shared)
        return fn

    def _bind(self, arrays: list[Any], call_tree: CallTree, dtypes: Any, *, marked: bool = False) -> Any:
        if self.diff_options.nondiff_argnums or self.diff_options.nondiff_mask is not None:
            constants = self._constants.get(call_tree) or remember(
                self._constants, call_tree, self._find_constants(call_tree)
            )
            arrays = [
                jax.lax.stop_gradient(array) if constant else array
                for array, constant in zip(arrays, constants, strict=True)
            ]
        return super()._bind(arrays, call_tree, dtypes, marked=marked)

    def _find_constants(self, call_tree: CallTree) -> tuple[bool, ...]:
        paths = call_tree.paths()
        numbered = are_at("nondiff_argnums", self.diff_options.nondiff_argnums, paths, self.__name__)
        return tuple(map(operator.or_, numbered, self._masked(call_tree)))

    def _masked(self, call_tree: CallTree) -> list[bool]:
        """For each data leaf, whether `nondiff_mask` marks it."""
        structure, statics = call_tree
        args, kwargs = jax.tree.unflatten(structure, list(range(len(statics))))
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
