"""Outputs that are no arrays, on their way through `jax.jit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from .._signature.call_tree import Static


@jax.tree_util.register_static
@dataclass(frozen=True)
class Mark:
    """A constant output on its way through `jax.jit`."""

    static: Static


def _without_marks(outputs: Any) -> Any:
    return jax.tree.map(
        lambda x: x.static.value if isinstance(x, Mark) else x, outputs, is_leaf=lambda x: isinstance(x, Mark)
    )
