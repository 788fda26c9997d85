"""Which operands are constants to differentiation: `nondiff_argnums` and `nondiff_mask`."""

from __future__ import annotations

import operator

import jax
import numpy as np
from t2j_core import ArgumentError
from t2j_core.extend import CallTree, are_at, describe

from .._base.options import DiffOptions


def constants_of(name: str, options: DiffOptions, call_tree: CallTree) -> tuple[bool, ...]:
    """For each operand of a call, whether it is a constant to differentiation."""
    numbered = are_at("nondiff_argnums", options.nondiff_argnums, call_tree.paths(), name)
    return tuple(map(operator.or_, numbered, _masked(name, options.nondiff_mask, call_tree)))


def _masked(name: str, mask: object, call_tree: CallTree) -> list[bool]:
    structure, statics = call_tree
    args, kwargs = jax.tree.unflatten(structure, list(range(len(statics))))
    mask = False if mask is None else tuple(mask) if isinstance(mask, list) else mask
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
                f"`nondiff_mask` does not match the arguments of {name}.",
                expected=f"a tree of bools like {jax.tree.structure(args)}, or a prefix of it",
                got=f"{jax.tree.structure(mask)}",
                remedy="Give one bool per argument, or per leaf of an argument.",
            )
        ) from None
    return [flag for flag, static in zip(flags, statics, strict=True) if static is None]
