"""Containers that JAX does not know, such as those in torch's registry, as ones that it knows."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import torch

from .. import _compat


def as_pytree(output: object, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """Turn containers that JAX does not know into ones it does.

    A dataclass or mapping that is not a registered pytree becomes a dict, and so does an object of a class that only
    torch's registry has (`torch.utils._pytree`); or a list, if its parts have no names. Fields that are None are
    dropped from a mapping that is a dataclass too (the convention of Hugging Face's `ModelOutput`). What `is_leaf`
    accepts stays.
    """
    if isinstance(output, torch.Tensor):
        return output
    if is_leaf is None:
        return jax.tree.map(_leaf_as_pytree, output)
    return jax.tree.map(functools.partial(_leaf_as_pytree, is_leaf=is_leaf), output, is_leaf=is_leaf)


def _leaf_as_pytree(leaf: object, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    if isinstance(leaf, torch.Tensor) or (is_leaf is not None and is_leaf(leaf)):
        return leaf
    if isinstance(leaf, tuple) and not isinstance(leaf, torch.Size):  # such as `torch.return_types.max`
        names = getattr(type(leaf), "__match_args__", ())
        items = [as_pytree(item, is_leaf) for item in leaf]
        return _named_tuple(type(leaf).__name__, names)(*items) if len(names) == len(items) > 0 else tuple(items)
    if isinstance(leaf, list):
        return [as_pytree(item, is_leaf) for item in leaf]
    if isinstance(leaf, Mapping):
        return {key: as_pytree(value, is_leaf) for key, value in leaf.items()}
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        return {field.name: as_pytree(getattr(leaf, field.name), is_leaf) for field in dataclasses.fields(leaf)}
    parts = _compat.registered_with_torch(leaf)
    return leaf if parts is None else as_pytree(parts, is_leaf)


@functools.lru_cache(maxsize=1024)
def _named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    return collections.namedtuple(name, fields)
