"""Outputs in other containers than the signature has: a list for a tuple, an `OrderedDict` for a dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import torch

from .._base.errors import OutputError, describe
from .call_tree import PyTreeDef
from .signature import Outputs, Signature


def order(signature: Signature, found: PyTreeDef) -> tuple[int, ...]:
    """For each leaf of the outputs, the leaf of the tree `found` that takes its place.

    All sequences count as alike, and so do all mappings. Raises `OutputError` at the first node that differs.
    """
    wanted = signature.outputs.tree
    places = [0] * wanted.num_leaves
    walk = _Walk(signature, places)
    walk(jax.tree.unflatten(wanted, range(wanted.num_leaves)), jax.tree.unflatten(found, range(found.num_leaves)))
    return tuple(places)


class _Walk:
    """Goes through two trees at once, whose leaves are their numbers."""

    def __init__(self, signature: Signature, places: list[int]) -> None:
        self._signature, self._places = signature, places

    def __call__(self, wanted: object, found: object, path: str = "output") -> None:
        if type(wanted) is int:
            self._check(type(found) is int, path, wanted, found)
            if type(found) is int:
                self._places[wanted] = found
            return
        children, others = _children(wanted), _children(found)
        self._check(_kind(wanted) == _kind(found) and len(children) == len(others), path, wanted, found)
        if isinstance(wanted, Mapping) and isinstance(found, Mapping):
            for key, child in wanted.items():
                self._check(key in found, f"{path}[{key!r}]", child, _Without(found))
                self(child, found[key], f"{path}[{key!r}]")
            return
        for (step, child), (_, other) in zip(children, others, strict=True):
            self(child, other, path + step)

    def _check(self, alike: bool, path: str, wanted: object, found: object) -> None:
        if alike:
            return
        outputs = self._signature.outputs
        than = "declared" if outputs.is_declared else "when JAX traced it"
        raise OutputError(
            describe(
                f"{self._signature.name} returned a different tree than {than}: {path} is different.",
                expected=_described(wanted),
                got=_described(found),
                remedy=remedy_for_tree(outputs),
            )
        )


def remedy_for_tree(outputs: Outputs) -> str:
    """The remedy for a function that returned a different tree than its signature has."""
    if outputs.is_declared:
        return "Correct `output_shapes`, or return the tree that it declares."
    return "Return the same tree for every input of a signature."


class _Without:
    """Stands for the value of a key that a mapping lacks."""

    def __init__(self, mapping: Mapping[Any, Any]) -> None:
        self.keys = ", ".join(map(repr, mapping))


def _kind(node: object) -> type:
    if isinstance(node, (tuple, list)) and not isinstance(node, torch.Size):
        return tuple
    return Mapping if isinstance(node, Mapping) else type(node)


def _children(node: object) -> list[tuple[str, object]]:
    """The children of a node by the path to them."""
    if type(node) is int:
        return []
    pairs = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    return [(jax.tree_util.keystr(path), child) for path, child in pairs]


def _described(node: object) -> str:
    if type(node) is int:
        return "a tensor or a constant"
    if node is None:
        return "None"
    if isinstance(node, _Without):
        return f"nothing: the keys are {node.keys}"
    if isinstance(node, Mapping):
        return f"{type(node).__name__} with the keys {', '.join(map(repr, node))}"
    if isinstance(node, (tuple, list)):
        return f"{type(node).__name__} of {len(node)}"
    return type(node).__name__
