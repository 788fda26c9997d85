"""`Wanted`: the sharding that the user asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jax.sharding import AbstractMesh, Mesh, NamedSharding
from t2j_core.extend import Tracer

from ._specs import SpecTree

AnyMesh = Mesh | AbstractMesh
Hints = tuple[NamedSharding | None, ...]  # of the data leaves


@dataclass(frozen=True)
class Wanted:
    """The sharding that the user asked for, and the shardings of concrete arrays."""

    out_specs: SpecTree
    in_specs: SpecTree = None
    mesh: AnyMesh | None = None
    hints: Hints = field(default=(), repr=False)
    """The shardings of the arrays of an eager call, or else of the examples, used where `in_specs` is missing."""
    is_eager: bool = field(default=False, repr=False)
    """Whether the hints are those of an eager call."""
    has_key: bool = field(default=False, repr=False)
    """Whether the first operand is the data of a JAX key, which is replicated."""

    def with_hints(self, leaves: Sequence[Any], *, is_eager: bool) -> Wanted:
        """The same for arrays with these shardings."""
        shardings = [None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None) for leaf in leaves]
        hints = tuple(s if isinstance(s, NamedSharding) else None for s in shardings)
        return replace(self, hints=hints, is_eager=is_eager) if any(hints) else self

    def __deepcopy__(self, memo: dict[int, Any]) -> Wanted:
        """The same object: it is immutable, and the devices of a mesh cannot be copied."""
        return self
