"""The signature of a call: trees, abstract values, constants; and outputs as the user declares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
import torch

from ._dtypes import aval_text, canonical, dtype_j2t, dtype_t2j, row_of_jax
from ._errors import ArgumentError, DTypeError, describe, listed
from ._pytree import PyTreeDef, Size, Static, argument_paths, plain


@dataclass(frozen=True)
class Leaf:
    """One array of a signature: what JAX holds and the torch dtype the function sees."""

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
    needs_no_values: bool = field(default=False, compare=False)  # a run without data ended: values decide no course
    needs_long_indices: bool | None = field(default=None, compare=False)  # where torch has others; None: not known
    origin: str = field(default="", compare=False)  # how they became known
    is_random: bool = field(default=False, compare=False)  # the function draws from torch's default generators
    keeps_state: bool = field(default=False, compare=False)  # a tensor without data, from inference
    is_declared: bool | None = field(default=None, compare=False)
    """Whether the user declared them, or they were inferred; None of derived functions and those of other processes."""
    is_doubtful: bool = field(default=False, compare=False)
    """Whether one without elements was declared, or seen on made-up values only. XLA drops calls whose results have no
    elements, and would not notice that it has some for real values."""

    @property
    def single(self) -> bool:
        """Whether the function returns one tensor, bare."""
        return self.tree == jax.tree.structure(0) and self.statics == (None,)

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
    """Everything about a call but its data."""

    name: str
    key: tuple[Any, ...]  # of `_pytree.split`
    operands: tuple[Leaf, ...]
    outputs: Outputs = field(compare=False)

    def operand_paths(self) -> list[str]:
        """The names of the operands: `args[0]['w']`."""
        return argument_paths(self.key)

    def __str__(self) -> str:
        left = ", ".join(map(str, self.operands))
        return f"{self.name}({left}) -> ({', '.join(map(str, self.outputs.leaves))})"


def has_empty(results: Sequence[Leaf], operands: Sequence[Leaf]) -> bool:
    """Whether a result has no elements, although operands have some."""
    return any(0 in leaf.shape for leaf in results) and not all(0 in leaf.shape for leaf in operands)


def named_avals(key: tuple[Any, ...], operands: Sequence[Leaf]) -> str:
    """The first operands by their names: `args[0]: f32[8,3], args[1]: i32[] and 3 more`."""
    return named_values(argument_paths(key), operands)


def named_values(paths: Sequence[str], leaves: Sequence[Leaf]) -> str:
    """The same for some operands."""
    return listed(f"{path}: {leaf}" for path, leaf in zip(paths, leaves, strict=True))


def leaf_of(shape: Sequence[int], dtype: Any, torch_dtype: torch.dtype | None = None) -> Leaf:
    """A `Leaf` from a JAX dtype. Raises for dtypes torch lacks and for symbolic sizes."""
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
    key = (jax.tree.structure((tuple(range(len(operands))), {})), (None,) * len(operands))
    outputs = Outputs(jax.tree.structure(tuple(range(len(results)))), tuple(results), (None,) * len(results))
    return Signature(name, key, tuple(operands), outputs)


_FEW = 8


def fixed_shapes(paths: Sequence[str], operands: Sequence[Leaf], *, takes_numbers: bool | None = None) -> str:
    """What to do where shapes depend on the values of some operands.

    `takes_numbers` says whether the function runs with Python numbers in their place; None if that is not known.
    """
    is_one_each = all(leaf.shape == () for leaf in operands)
    if may_be_numbers(operands) and (is_one_each if takes_numbers is None else takes_numbers):
        kinds = "a Python number" if is_one_each else "a tuple of Python numbers"
        return (
            f"Pass {' and '.join(paths)} as {kinds}, not as an array, so that it is a constant; under a `jax.jit` of "
            "your own, name it in `static_argnums` or `static_argnames` of that `jax.jit`."
        )
    remedy = "Pad the outputs to a fixed size inside the function, for example with a mask of the valid entries."
    if takes_numbers is None and any(leaf.shape == () and not leaf.is_inexact for leaf in operands):
        return (
            "A number among the arguments of a `jax.jit` of your own is data. If the shapes depend on it, make it a "
            f"constant with `static_argnums` or `static_argnames` of that `jax.jit`. Otherwise: {remedy}"
        )
    return remedy


def may_be_numbers(operands: Sequence[Leaf]) -> bool:
    """Whether each operand could as well be a Python number, or a few integers."""
    return len(operands) > 0 and all(map(_is_number, operands))


def _is_number(leaf: Leaf) -> bool:
    """Whether an operand could as well be a Python number, or a few integers."""
    return leaf.shape == () or (len(leaf.shape) == 1 and leaf.shape[0] <= _FEW and not leaf.is_inexact)


def same_tree(outputs: Outputs) -> str:
    """What to do where a function returned another tree than its signature has."""
    if outputs.is_declared:
        return "Correct `output_shapes`, or return the tree that it declares."
    return "Return the same tree for every input of a signature."


# --- declared outputs ---------------------------------------------------------------------------------------------


def declared_outputs(output_shapes: Any, operands: Sequence[Leaf]) -> Outputs:
    """Read `output_shapes`: a pytree of `Size`, tuples of int, `ShapeDtypeStruct`s, arrays or tensors.

    A shape without a dtype takes the dtype of the first floating operand, float32 if there is none.
    """
    floating = next((leaf for leaf in operands if leaf.torch_dtype.is_floating_point), None)
    default = floating.torch_dtype if floating else torch.float32
    named, tree = jax.tree_util.tree_flatten_with_path(plain(output_shapes, is_leaf=_is_shape), is_leaf=_is_shape)
    leaves = tuple(_declared(item, default, jax.tree_util.keystr(path)) for path, item in named)
    outputs = Outputs(tree, leaves, (None,) * len(leaves), origin="declared by `output_shapes`", is_declared=True)
    return replace(outputs, is_doubtful=has_empty(outputs.leaves, operands))


def _is_shape(item: Any) -> bool:
    if isinstance(item, (Size, torch.Size)):
        return True
    return isinstance(item, (tuple, list)) and all(map(_is_integer, item))


def _is_integer(n: Any) -> bool:
    return isinstance(n, (int, np.integer)) and not isinstance(n, bool)


def _declared(item: Any, default: torch.dtype, path: str) -> Leaf:
    shape, dtype = (item, default) if _is_shape(item) else (getattr(item, name, None) for name in ("shape", "dtype"))
    if not isinstance(shape, (tuple, list)) or dtype is None:
        raise _not_an_array(path, type(item).__name__ if not isinstance(item, type) else f"the type {item.__name__}")
    if any(_is_integer(n) and not 0 <= n < 1 << 63 for n in shape):
        raise _not_an_array(path, f"the shape {tuple(shape)}")
    try:
        return output_leaf(tuple(shape), dtype_j2t(dtype))
    except DTypeError as error:
        raise DTypeError(f"In `output_shapes`: {error}") from None


def _not_an_array(path: str, got: str) -> ArgumentError:
    return ArgumentError(
        describe(
            f"`output_shapes` holds something that does not describe an array{f' at {path}' if path else ''}.",
            expected="a pytree of Size, tuple of int, jax.ShapeDtypeStruct, array or tensor",
            got=got,
            remedy="Describe each output by `Size(shape)` or `jax.ShapeDtypeStruct(shape, dtype)`.",
        )
    )


def output_leaf(shape: tuple[int, ...], dtype: torch.dtype) -> Leaf:
    """A `Leaf` from a torch dtype, as JAX stores it."""
    return leaf_of(shape, canonical(dtype_t2j(dtype)), dtype)
