"""The options of `torch2jax` as types, for functions that take them as `**options`: editors show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t2j_core.extend import Keywords

from .options import Randomness, ResidualsOption, VmapMethod


class DiffKeywords(Keywords, total=False):
    """What `**options` may hold: the fields of `Options` and of `DiffOptions`."""

    depth: int | None
    nondiff_argnums: int | Sequence[int] | None
    nondiff_mask: Any
    use_zeros: bool
    use_torch_vjp: bool
    residuals: ResidualsOption
    vmap_method: VmapMethod
    vmap_randomness: Randomness | None
    vmap_chunk_size: int | None
