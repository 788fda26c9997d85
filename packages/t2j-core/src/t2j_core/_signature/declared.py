"""Outputs as the user declares them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, SupportsIndex

import jax
import numpy as np
import torch

from .._base.dtypes import dtype_j2t
from .._base.errors import ArgumentError, DTypeError, describe
from .containers import as_pytree
from .signature import Leaf, Outputs, has_empty, output_leaf


class Size(tuple[int, ...]):
    """A shape that stands for one output in `output_shapes`: `Size(3, 2)`, `Size((3, 2))` or `Size(tensor.shape)`.

    >>> Size(3, 2) == Size((3, 2))
    True
    """

    def __new__(cls, *sizes: SupportsIndex | Sequence[SupportsIndex]) -> Size:
        given: Sequence[Any] = sizes
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            given = sizes[0]
        try:
            return super().__new__(cls, map(operator.index, given))
        except TypeError:
            raise ArgumentError(
                describe("`Size` takes integers.", got=repr(given)[:200], remedy="Pass a shape: `Size(3, 2)`.")
            ) from None

    def __repr__(self) -> str:
        return f"Size({', '.join(map(str, self))})"


def declared_outputs(output_shapes: object, operands: Sequence[Leaf]) -> Outputs:
    """Read `output_shapes`: a pytree of `Size`, tuples of int, `ShapeDtypeStruct`s, arrays or tensors.

    A shape without a dtype takes the dtype of the first floating operand, float32 if there is none.
    """
    floating = next((leaf for leaf in operands if leaf.torch_dtype.is_floating_point), None)
    default = floating.torch_dtype if floating else torch.float32
    named, tree = jax.tree_util.tree_flatten_with_path(as_pytree(output_shapes, is_leaf=_is_shape), is_leaf=_is_shape)
    leaves = tuple(_declared(item, default, jax.tree_util.keystr(path)) for path, item in named)
    outputs = Outputs(tree, leaves, (None,) * len(leaves), origin="declared by `output_shapes`", is_declared=True)
    return replace(outputs, is_doubtful=has_empty(outputs.leaves, operands))


def _is_shape(item: object) -> bool:
    if isinstance(item, (Size, torch.Size)):
        return True
    return isinstance(item, (tuple, list)) and all(map(_is_integer, item))


def _is_integer(n: object) -> bool:
    return isinstance(n, (int, np.integer)) and not isinstance(n, bool)


def _declared(item: object, default: torch.dtype, path: str) -> Leaf:
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
