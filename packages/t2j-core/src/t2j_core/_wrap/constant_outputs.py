"""Outputs that are not arrays, on their way through `jax.jit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from .._signature.call_tree import Static
from .._signature.signature import Outputs


@jax.tree_util.register_static
@dataclass(frozen=True)
class Mark:
    """A constant output on its way through `jax.jit`, to which it is a part of the tree."""

    static: Static


def with_marks(outputs: Outputs, results: Sequence[jax.Array]) -> Any:
    """The output tree with `results`, and marks in the places of the constants."""
    rest = iter(results)
    return jax.tree.unflatten(outputs.tree, [next(rest) if s is None else Mark(s) for s in outputs.statics])


def without_marks(tree: object) -> Any:
    """The output tree with the constants themselves."""
    return jax.tree.map(
        lambda x: x.static.value if isinstance(x, Mark) else x, tree, is_leaf=lambda x: isinstance(x, Mark)
    )
