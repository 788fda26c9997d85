"""The options of `torch2jax` as types, for functions that hand them on: editors show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict


class Keywords(TypedDict, total=False):
    """What `**options` may hold; see `torch2jax`."""

    output_shapes: Any
    mutable_argnums: int | Sequence[int]
    rng: bool
    arguments: Literal["auto", "copy", "check"]
    outputs: Literal["auto", "copy", "out"]
    has_side_effect: bool
    name: str | None
