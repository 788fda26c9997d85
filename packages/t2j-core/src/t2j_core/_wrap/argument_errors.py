"""Errors that JAX raises for the arguments of an eager call, in terms of the function that the user has called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax

from .._base.errors import ArgumentError, ShardingError, T2jError, describe
from .._signature.call_tree import argument_path

_DEVICES = re.compile(r"with device ids (\[[\d, ]*\])")


def as_argument_error(name: str, error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> T2jError | None:
    """The error of t2j for one of JAX that describes the arguments of a compiled form; None for other errors."""
    if type(error) is not ValueError:
        return None
    text = str(error)
    if text.startswith("Received incompatible devices"):
        return ShardingError(_on_different_devices(name, _DEVICES.findall(text), args, kwargs))
    if text.startswith("Comparator raised exception while sorting pytree dictionary keys"):
        return ArgumentError(
            describe(
                f"An argument of {name} is a dict whose keys cannot be sorted, which JAX needs.",
                expected="keys of one type, such as strings",
                got=", ".join(sorted(_kinds_of_keys((args, dict(kwargs))))),
                remedy="Use strings as keys, or pass the values as a tuple.",
            )
        )
    return None


def _on_different_devices(name: str, devices: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    found: dict[str, str] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path((args, dict(kwargs)))[0]:
        if isinstance(leaf, jax.Array):
            devices_of: set[Any] = leaf.sharding.device_set
            found.setdefault(str(sorted(device.id for device in devices_of)), argument_path(path))
    named = [f"{found[ids]} on devices {ids}" for ids in dict.fromkeys(devices) if ids in found]
    return describe(
        f"The arguments of {name} lie on different devices.",
        expected="all arrays on one device, or on one mesh",
        got=", ".join(named) or "arrays on several",
        remedy="Move them to one with `jax.device_put(array, sharding)`.",
    )


def _kinds_of_keys(tree: object) -> set[str]:
    """The types of the keys of the first dict that has several."""
    if isinstance(tree, dict):
        kinds = {type(key).__name__ for key in tree}
        if len(kinds) > 1:
            return kinds
        tree = list(tree.values())
    parts = tree if isinstance(tree, (list, tuple)) else ()
    return next((kinds for kinds in map(_kinds_of_keys, parts) if kinds), set())
