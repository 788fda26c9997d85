"""The signature of a call: abstract values and constants of its arguments and outputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import torch
from jax.typing import DTypeLike

from .._base.dtypes import aval_text, canonical, dtype_t2j, row_of_jax
from .._base.errors import ArgumentError, describe
from .._base.text import listed
from .call_tree import CallTree, PyTreeDef, Static

SMALL = 1 << 12
"""The most elements of a small array: an operation on it takes less time than it takes to change threads."""


@dataclass(frozen=True)
class Leaf:
    """One array of a signature: its shape, its dtype in JAX, and the dtype of the tensor that the function sees."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    torch_dtype: torch.dtype

    def __str__(self) -> str:
        return aval_text(self.shape, self.dtype)

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def is_small(self) -> bool:
        """Whether it has few elements."""
        return math.prod(self.shape) <= SMALL

    @property
    def is_inexact(self) -> bool:
        """Whether the function sees floating or complex numbers."""
        return self.torch_dtype.is_floating_point or self.torch_dtype.is_complex


@dataclass(frozen=True)
class Outputs:
    """The output tree of a function: arrays, and the constants it returns beside them."""

    tree: PyTreeDef
    leaves: tuple[Leaf, ...]
    statics: tuple[Static | None, ...]
    mutated: tuple[int, ...] = ()  # operands the function writes into
    returned: tuple[tuple[int, int], ...] = ()  # (operand, result) where a mutated operand is returned itself
    is_quick: bool = False  # few operations, on small tensors, none of them random
    is_small: bool = False  # it only has operations of torch on small tensors
    draws_operations: bool = field(default=False, compare=False)
    """Whether all random numbers are drawn by operations for which there is a kernel that takes a key."""
    needs_no_values: bool = field(default=False, compare=False)  # a run without data succeeded
    needs_long_indices: bool | None = field(default=None, compare=False)  # indices must be int64; None: not known
    origin: str = field(default="", compare=False)  # how they became known, for error texts
    is_random: bool = field(default=False, compare=False)  # the function draws from torch's default generators
    keeps_state: bool = field(default=False, compare=False)  # it keeps a tensor without data from inference
    is_declared: bool | None = field(default=None, compare=False)
    """True if the user declared them, False if they were inferred; None for derived functions, and other processes."""
    is_doubtful: bool = field(default=False, compare=False)
    """Whether an output without elements was declared, or found on made-up values only. XLA drops calls whose results
    have no elements, so nothing would show that there are some for real values."""

    @functools.cached_property
    def single(self) -> bool:
        """Whether the function returns one tensor, bare."""
        return self.tree == jax.tree.structure(0) and self.statics == (None,)

    def is_alike(self, other: Outputs) -> bool:
        """Whether both have the same tree, avals and constants."""
        return (self.leaves, self.tree, self.statics) == (other.leaves, other.tree, other.statics)

    def unflatten(self, arrays: Sequence[Any]) -> Any:
        """The output tree with `arrays` and the constants in their places."""
        rest = iter(arrays)
        return jax.tree.unflatten(self.tree, [next(rest) if s is None else s.value for s in self.statics])

    def paths(self) -> list[str]:
        """The names of the arrays in the output: `output[0]['logits']`."""
        marked = jax.tree.unflatten(self.tree, list(range(len(self.statics))))
        named = [f"output{jax.tree_util.keystr(path)}" for path, _ in jax.tree_util.tree_flatten_with_path(marked)[0]]
        return [name for name, static in zip(named, self.statics, strict=True) if static is None]


@dataclass(frozen=True)
class Signature:
    """Everything about a call except its data."""

    name: str
    call_tree: CallTree
    operands: tuple[Leaf, ...]
    outputs: Outputs = field(compare=False)

    def operand_paths(self) -> list[str]:
        """The names of the operands: `args[0]['w']`."""
        return self.call_tree.paths()

    def __str__(self) -> str:
        left = ", ".join(map(str, self.operands))
        return f"{self.name}({left}) -> ({', '.join(map(str, self.outputs.leaves))})"


def has_empty(results: Sequence[Leaf], operands: Sequence[Leaf]) -> bool:
    """Whether a result has no elements although operands have some."""
    return any(0 in leaf.shape for leaf in results) and not all(0 in leaf.shape for leaf in operands)


def named_values(paths: Sequence[str], leaves: Sequence[Leaf]) -> str:
    """Some operands by their names: `args[0]: f32[8,3], args[1]: i32[] and 3 more`."""
    return listed(f"{path}: {leaf}" for path, leaf in zip(paths, leaves, strict=True))


def leaf_of(shape: Sequence[int], dtype: DTypeLike, torch_dtype: torch.dtype | None = None) -> Leaf:
    """A `Leaf` from a JAX dtype. Raises for dtypes that torch lacks, and for symbolic sizes."""
    row = row_of_jax(dtype)
    try:
        sizes = tuple(int(size) for size in shape)
    except Exception:
        raise ArgumentError(
            describe(
                "A torch function needs concrete shapes.",
                got=f"{dtype}[{','.join(map(str, shape))}]",
                remedy="Export with concrete shapes instead of symbolic ones.",
            )
        ) from None
    return Leaf(sizes, row.jax, torch_dtype or row.torch)


def flat_signature(name: str, operands: Sequence[Leaf], results: Sequence[Leaf]) -> Signature:
    """The signature of a function from tensors to a tuple of tensors."""
    outputs = Outputs(jax.tree.structure(tuple(range(len(results)))), tuple(results), (None,) * len(results))
    return Signature(name, CallTree.positional(len(operands)), tuple(operands), outputs)


def output_leaf(shape: tuple[int, ...], dtype: torch.dtype) -> Leaf:
    """A `Leaf` from a torch dtype, as JAX stores it."""
    return leaf_of(shape, canonical(dtype_t2j(dtype)), dtype)
