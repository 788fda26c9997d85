"""What all functions derived from one wrapped function share: its options, and what was found out about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from t2j_core import ArgumentError
from t2j_core.extend import argument_numbers, describe

_RESIDUALS = ("auto", "recompute", "graph")
_VMAP_METHODS = ("auto", "vmap", "sequential", "expand_dims", "broadcast_all")
_RANDOMNESS = (None, "error", "same", "different")


@dataclass(frozen=True)
class DiffOptions:
    """How a function is differentiated and batched; see `torch2jax`."""

    depth: int | None = 2
    nondiff_argnums: Any = ()
    nondiff_mask: Any = None
    use_zeros: bool = True
    use_torch_vjp: bool = True
    residuals: str = "auto"
    vmap_method: str = "auto"
    vmap_randomness: str | None = None
    vmap_chunk_size: int | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        depth = self.depth
        if depth is not None and (isinstance(depth, bool) or not isinstance(depth, Integral) or int(depth) < 0):
            _refuse(
                "depth", "a non-negative integer, or None for no limit", depth, "Count derivatives: 2 for Hessians."
            )
        numbers = () if self.nondiff_argnums is None else self.nondiff_argnums
        object.__setattr__(self, "nondiff_argnums", argument_numbers("nondiff_argnums", numbers))
        choices = {"residuals": _RESIDUALS, "vmap_method": _VMAP_METHODS, "vmap_randomness": _RANDOMNESS}
        for name, values in choices.items():
            if getattr(self, name) not in values:
                _refuse(name, " or ".join(map(repr, values)), getattr(self, name), "Choose one.")
        size = self.vmap_chunk_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            _refuse("vmap_chunk_size", "a positive integer, or None", size, "Pass how many examples run at once.")

    @property
    def limit(self) -> float:
        """`depth` as a number."""
        return math.inf if self.depth is None else self.depth


def _refuse(name: str, expected: str, got: Any, remedy: str) -> None:
    raise ArgumentError(describe(f"`{name}` is not valid.", expected=expected, got=repr(got), remedy=remedy))


@dataclass(eq=False)
class Shared:
    """Options, and what running the function has shown. Written from several threads, one plain value at a time."""

    name: str
    options: DiffOptions
    has_key: bool = False  # the first operand is a JAX key
    vmap_failures: dict[str, str] = field(default_factory=dict)  # why `torch.func.vmap` is not used, for each kind
    forward_modes: dict[str, str] = field(default_factory=dict)  # what takes the place of `torch.func.jvp`, and why
    is_random: bool = False  # it was seen to draw unseeded random numbers
    residuals: dict[str, str] = field(default_factory=dict)  # how derivatives of each signature get their residuals

    def vmap_failure(self, kind: str) -> str | None:
        """Why a batch of values ("value"), pullbacks ("vjp") or pushforwards ("jvp") runs in turn.

        What cannot be batched itself has derivatives that cannot be either; the reverse is not true.
        """
        return self.vmap_failures.get(kind, self.vmap_failures.get("value"))
