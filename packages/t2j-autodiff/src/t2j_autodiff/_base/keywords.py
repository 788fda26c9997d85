"""The options of `torch2jax` as types, for functions that hand them on: editors show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from t2j_core.extend import Keywords


class DiffKeywords(Keywords, total=False):
    """What `**options` may hold; see `torch2jax`."""

    depth: int | None
    nondiff_argnums: int | Sequence[int] | None
    nondiff_mask: Any
    use_zeros: bool
    use_torch_vjp: bool
    residuals: Literal["auto", "recompute", "graph"]
    vmap_method: Literal["auto", "vmap", "sequential", "expand_dims", "broadcast_all"]
    vmap_randomness: Literal["same", "different", "error"] | None
    vmap_chunk_size: int | None
