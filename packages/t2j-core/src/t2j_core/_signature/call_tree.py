"""`CallTree`: the containers around the arguments of a call, and which leaves are data, which static."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from jax.tree_util import PyTreeDef as PyTreeDef

from .._base.errors import ArgumentError, describe

_data_types: set[type] = {torch.Tensor, torch.nn.Parameter, np.ndarray}
"""The exact types of data that were met so far: `isinstance` with `jax.Array` is slow."""
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
    """A static leaf: a constant, part of the signature.

    `1`, `1.0` and `True` differ, so do `0.0` and `-0.0`; NaN equals itself.
    """

    kind: type
    identity: Hashable
    value: Any

    def __eq__(self, other: object) -> bool:  # compares tuples, in which an object equals itself even if it is NaN
        return isinstance(other, Static) and (self.kind, self.identity) == (other.kind, other.identity)

    def __hash__(self) -> int:
        return hash((self.kind, self.identity))

    @classmethod
    def of(cls, value: Any) -> Static:
        """The static leaf for a value."""
        return cls(type(value), repr(value) if isinstance(value, (float, complex)) else value, value)


class CallTree(NamedTuple):
    """The arguments of a call without the data: the containers around the leaves, and the static leaves."""

    structure: PyTreeDef  # of `(args, kwargs)`
    statics: tuple[Static | None, ...]  # one for each leaf; None for data

    @classmethod
    def positional(cls, count: int) -> CallTree:
        """The tree of `f(array, array, ...)`."""
        return cls(jax.tree.structure((tuple(range(count)), {})), (None,) * count)

    @property
    def is_positional(self) -> bool:
        """Whether the call is `f(array, array, ...)`: the data leaves are the arguments."""
        return self == CallTree.positional(len(self.statics))

    def merger(self) -> Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]:
        """The inverse of `split`: a function from data leaves to `(args, kwargs)`."""
        structure, statics = self
        if all(static is None for static in statics):
            return structure.unflatten

        def merge(data: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            rest = iter(data)
            args, kwargs = structure.unflatten([next(rest) if s is None else s.value for s in statics])
            return args, kwargs

        return merge

    def paths(self) -> list[str]:
        """The user's names of the data leaves, in order: `args[0]['w']`."""
        return [path for path, static in self._named_leaves() if static is None]

    def constants(self) -> dict[str, Any]:
        """The static leaves by their names."""
        return {path: static.value for path, static in self._named_leaves() if static is not None}

    def numbers(self) -> dict[str, Any]:
        """The static leaves that are numbers, by their names."""
        return {path: value for path, value in self.constants().items() if type(value) in (int, float, complex)}

    def _named_leaves(self) -> list[tuple[str, Static | None]]:
        numbered = jax.tree.unflatten(self.structure, range(len(self.statics)))
        found = jax.tree_util.tree_flatten_with_path(numbered)[0]
        return [(argument_path(path), self.statics[i]) for path, i in found]


def split(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], CallTree]:
    """The data leaves of the arguments of a call, and its tree.

    Raises `ArgumentError` naming the first static leaf that is not hashable.
    """
    leaves, structure = jax.tree.flatten((tuple(args), dict(kwargs)))
    if _data_types.issuperset(map(type, leaves)):
        return leaves, CallTree(structure, (None,) * len(leaves))
    statics = tuple(None if is_data(leaf) else Static.of(leaf) for leaf in leaves)
    data = [leaf for leaf, static in zip(leaves, statics, strict=True) if static is None]
    try:
        hash(statics)
    except TypeError:
        _raise_unhashable(args, kwargs)
    return data, CallTree(structure, statics)


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


def argument_path(path: Sequence[Any]) -> str:
    """The user's name of a leaf of `(args, kwargs)`: `args[0]['w']` or `kwargs['scale']`."""
    head, *rest = path
    return ("args" if head.idx == 0 else "kwargs") + jax.tree_util.keystr(tuple(rest))
