"""The tree of a call: which leaves are data and which are constants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from .._base.errors import ArgumentError, describe

PyTreeDef = Any

_data_types: set[type] = {torch.Tensor, torch.nn.Parameter, np.ndarray}
"""Exact types known to be data, up to a number; grows with the types seen: `isinstance` with `jax.Array` is slow."""
_MOST_TYPES = 256


def is_data(leaf: object) -> bool:
    """Whether a leaf is an array, a tracer or a tensor, and thus an operand of the call."""
    if type(leaf) in _data_types:
        return True
    is_array = isinstance(leaf, (jax.Array, torch.Tensor, np.ndarray, np.generic))
    if is_array and not isinstance(leaf, (np.flexible, np.datetime64, np.timedelta64)):  # `np.str_` is a constant
        if len(_data_types) < _MOST_TYPES:
            _data_types.add(type(leaf))
        return True
    return False


@dataclasses.dataclass(frozen=True, eq=False)
class Static:
    """A constant leaf: part of the signature. `1`, `1.0` and `True` differ, `0.0` and `-0.0` too; NaN equals itself."""

    kind: type
    identity: Hashable
    value: Any

    def __eq__(self, other: object) -> bool:  # of tuples, to which any object equals itself
        return isinstance(other, Static) and (self.kind, self.identity) == (other.kind, other.identity)

    def __hash__(self) -> int:
        return hash((self.kind, self.identity))

    @classmethod
    def of(cls, value: Any) -> Static:
        """The constant for a value."""
        return cls(type(value), repr(value) if isinstance(value, (float, complex)) else value, value)


class Split(NamedTuple):
    """A flattened call: data leaves, and everything about it that is constant."""

    data: list[Any]
    key: tuple[Any, ...]  # (treedef, one `Static` or None per leaf)


def split(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Split:
    """Flatten `(args, kwargs)` and part the data from the constants.

    Raises `ArgumentError` naming the first constant that is not hashable.
    """
    leaves, tree = jax.tree.flatten((tuple(args), dict(kwargs)))
    if _data_types.issuperset(map(type, leaves)):
        return Split(leaves, (tree, (None,) * len(leaves)))
    statics = tuple(None if is_data(leaf) else Static.of(leaf) for leaf in leaves)
    data = [leaf for leaf, static in zip(leaves, statics, strict=True) if static is None]
    try:
        hash(statics)
    except TypeError:
        _raise_unhashable(args, kwargs)
    return Split(data, (tree, statics))


def _raise_unhashable(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path((tuple(args), dict(kwargs)))[0]:
        try:
            hash(leaf)
        except TypeError:
            if is_data(leaf):
                continue
            raise ArgumentError(
                describe(
                    f"{argument_path(path)} is neither an array nor hashable, so it cannot be part of the signature.",
                    expected="a JAX array, NumPy array, torch tensor, or a hashable constant",
                    got=f"{type(leaf).__name__}",
                    remedy="Pass it as arrays, give it `__hash__` and `__eq__`, or register it as a pytree.",
                )
            ) from None


def merger(key: tuple[Any, ...]) -> Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]:
    """The inverse of `split`: a function from data leaves to `(args, kwargs)`."""
    tree, statics = key
    if all(static is None for static in statics):
        return tree.unflatten

    def merge(data: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rest = iter(data)
        args, kwargs = tree.unflatten([next(rest) if static is None else static.value for static in statics])
        return args, kwargs

    return merge


def is_flat(key: tuple[Any, ...]) -> bool:
    """Whether a call is `f(array, array, ...)`: nothing to merge."""
    tree, statics = key
    n = len(statics)
    return all(s is None for s in statics) and tree == jax.tree.structure((tuple(range(n)), {}))


def argument_path(path: Sequence[Any]) -> str:
    """The user's name of a leaf of `(args, kwargs)`: `args[0]['w']` or `kwargs['scale']`."""
    head, *rest = path
    return ("args" if head.idx == 0 else "kwargs") + jax.tree_util.keystr(tuple(rest))


def argument_paths(key: tuple[Any, ...]) -> list[str]:
    """The names of the data leaves, in order."""
    tree, statics = key
    # `None` would vanish from the tree, so data leaves are marked by an object.
    marked = jax.tree.unflatten(tree, [_DATA if s is None else s for s in statics])
    paths = jax.tree_util.tree_flatten_with_path(marked, is_leaf=lambda x: isinstance(x, Static))
    return [argument_path(path) for path, leaf in paths[0] if leaf is _DATA]


_DATA = object()


def constants(key: tuple[Any, ...]) -> dict[str, Any]:
    """The constants of a call by their names."""
    tree, statics = key
    named = jax.tree_util.tree_flatten_with_path(jax.tree.unflatten(tree, range(len(statics))))[0]
    return {argument_path(path): statics[i].value for path, i in named if statics[i] is not None}


def numbers(key: tuple[Any, ...]) -> dict[str, Any]:
    """The constants of a call that are numbers, by their names."""
    return {path: value for path, value in constants(key).items() if type(value) in (int, float, complex)}
