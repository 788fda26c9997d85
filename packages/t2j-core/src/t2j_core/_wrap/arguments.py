"""What users pass, checked and as JAX takes it: the function, tensors and NumPy arrays, JAX keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch

from .._base.dtypes import dtype_j2t
from .._base.errors import ArgumentError, DTypeError, describe
from .._signature.call_tree import CallTree
from .._signature.signature import Leaf, leaf_of
from .convert import t2j


def check_callable(fn: object) -> None:
    """Raise unless `fn` can be wrapped."""
    if not callable(fn):
        raise ArgumentError(
            describe("`fn` must be callable.", got=type(fn).__name__, remedy="Pass a function or an `nn.Module`.")
        )
    if isinstance(fn, type) and issubclass(fn, torch.nn.Module):
        raise ArgumentError(
            describe(
                f"`fn` is the class {fn.__name__}, whose call makes a module.",
                expected="a function, or a module",
                got="a class",
                remedy=f"Make a module first: `torch2jax({fn.__name__}(...))`.",
            )
        )


def leaves_of(
    arrays: Sequence[Any], dtypes: Sequence[tuple[int, torch.dtype]], name: str = "", call_tree: CallTree | None = None
) -> tuple[Leaf, ...]:
    """The leaves of arrays, with those torch dtypes that differ from what JAX stores.

    Errors say which argument of `name` it is, if `call_tree` is given.
    """
    wanted = dict(dtypes)
    leaf = lambda index, array: leaf_of(array.shape, array.dtype, wanted.get(index))
    return tuple(_named(leaf, arrays, name, call_tree))


def arrays_of(data: Sequence[Any], name: str, call_tree: CallTree, *, is_traced: bool) -> list[Any]:
    """The data of a call as JAX takes it. Errors say which argument of `name` they are about."""
    return _named(lambda _, leaf: to_jax(leaf, is_traced=is_traced), data, name, call_tree)


def _named(
    convert: Callable[[int, Any], Any], values: Sequence[Any], name: str, call_tree: CallTree | None
) -> list[Any]:
    results: list[Any] = []
    try:
        for index, value in enumerate(values):
            results.append(convert(index, value))
    except (DTypeError, ArgumentError) as error:
        if call_tree is None:
            raise
        kind = DTypeError if isinstance(error, DTypeError) else ArgumentError
        raise kind(f"{call_tree.paths()[len(results)]} of {name}: {error}") from None
    return results


def to_jax(leaf: object, *, is_traced: bool) -> Any:
    """A tensor as a JAX array, and a NumPy array too where JAX traces; a compiled form takes it as it is.

    Raises for objects, strings, dates and foreign byte orders.
    """
    if isinstance(leaf, torch.Tensor):
        return t2j(leaf)
    if not isinstance(leaf, (np.ndarray, np.generic)):
        return leaf
    dtype_j2t(leaf.dtype)
    return jax.numpy.asarray(leaf) if is_traced else np.asarray(leaf)  # the former compiles a program for each shape


def check_key_is_first(name: str, call_tree: CallTree) -> None:
    """Raise unless the first argument is an array."""
    paths = call_tree.paths()
    if not paths or paths[0] != "args[0]":
        raise ArgumentError(
            describe(
                f"With `rng=True` the first argument must be a JAX key; {name} got none.",
                expected="a key, as made by `jax.random.key(seed)`, then the other arguments",
                got=", ".join(paths) or "no arrays",
                remedy="Pass a key first: `f(key, x)`, or `apply(key, variables, x)` for a module.",
            )
        )


def key_data(key: jax.Array) -> Any:
    """The numbers of a JAX key of either kind. Raises for anything else."""
    if jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    if key.dtype != np.uint32 or key.ndim != 1:
        raise ArgumentError(
            describe(
                "With `rng=True` the first argument must be a JAX key.",
                expected="one key, as made by `jax.random.key(seed)`",
                got=f"{key.dtype}{list(key.shape)}",
                remedy="Pass a key first: `f(key, x)`, or `apply(key, variables, x)` for a module. "
                "A batch of keys goes through `jax.vmap`.",
            )
        )
    return key
