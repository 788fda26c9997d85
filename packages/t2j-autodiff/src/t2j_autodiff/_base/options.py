"""The options of `torch2jax` for derivatives and batches, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import numpy as np
from t2j_core.extend import argument_numbers, check_choice, checked_bool, checked_integer, refused

ResidualsOption = Literal["auto", "recompute", "graph"]
VmapMethod = Literal["auto", "vmap", "sequential", "expand_dims", "broadcast_all"]
Randomness = Literal["error", "same", "different"]


@dataclass(frozen=True)
class DiffOptions:
    """How a function is differentiated and batched; see `torch2jax`, whose options these fields are."""

    depth: int | None = 2
    nondiff_argnums: Any = ()
    nondiff_mask: Any = None
    use_zeros: bool = True
    use_torch_vjp: bool = True
    residuals: ResidualsOption = "auto"
    vmap_method: VmapMethod = "auto"
    vmap_randomness: Randomness | None = None
    vmap_chunk_size: int | None = None

    def __post_init__(self) -> None:
        """Check the options, and bring numbers and bools to one form."""
        depth = checked_integer(
            "depth",
            self.depth,
            0,
            "a non-negative integer, or None for no limit",
            remedy="Count derivatives: 2 for Hessians.",
        )
        size = checked_integer(
            "vmap_chunk_size",
            self.vmap_chunk_size,
            1,
            "a positive integer, or None",
            remedy="Pass how many examples run at once.",
        )
        numbers = argument_numbers("nondiff_argnums", () if self.nondiff_argnums is None else self.nondiff_argnums)
        bools = {name: checked_bool(name, getattr(self, name)) for name in ("use_zeros", "use_torch_vjp")}
        for name, value in {"depth": depth, "vmap_chunk_size": size, "nondiff_argnums": numbers, **bools}.items():
            object.__setattr__(self, name, value)
        check_choice("residuals", self.residuals, get_args(ResidualsOption))
        check_choice("vmap_method", self.vmap_method, get_args(VmapMethod))
        check_choice("vmap_randomness", self.vmap_randomness, (None, *get_args(Randomness)))
        _check_mask(self.nondiff_mask)

    @property
    def has_leading_axes(self) -> bool:
        """Whether the function takes batch axes itself."""
        return self.vmap_method in ("expand_dims", "broadcast_all")

    @property
    def limit(self) -> float:
        """`depth` as a number."""
        return math.inf if self.depth is None else self.depth


def _check_mask(mask: object) -> None:
    try:
        leaves = jax.tree.leaves(mask)
    except Exception:  # such as a dict whose keys have no order
        leaves = [None]
    if not all(isinstance(leaf, (bool, np.bool_)) for leaf in leaves):
        raise refused("nondiff_mask", "a tree of bools like the arguments", mask, "Give one bool per argument or leaf.")
