"""What both primitives' rules read of JAX's operands, tangents and batch axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from t2j_core.extend import Leaf, TorchFn, describe

from .. import _compat
from .._base.decisions import Decisions
from .._base.errors import DepthError
from .._batching.batch_axes import Dims


def has_tangents(leaf: Leaf) -> bool:
    """Whether JAX has tangents of a leaf other than zero."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def moved_operands(fn: TorchFn, tangents: Sequence[Any]) -> tuple[int, ...]:
    """The operands with a tangent that is not zero. `tangents` are those of all operands, or of the first ones."""
    pairs = zip(tangents, fn.signature.operands, strict=False)
    return tuple(i for i, (t, leaf) in enumerate(pairs) if not _compat.is_zero(t) and has_tangents(leaf))


def is_given(cotangent: Any) -> bool:
    """Whether a result has a cotangent that is not zero."""
    return not _compat.is_zero(cotangent) and jax.typeof(cotangent).dtype != jax.dtypes.float0


def batch_in_front(operands: Sequence[Any], dims: Sequence[int | None]) -> tuple[int, list[Any], Dims]:
    """How many examples there are, the operands with their batch axes in front, and which have one."""
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    moved = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(operands, dims, strict=True)]
    return size, moved, tuple(None if d is None else 0 for d in dims)


def check_depth(depth: float, decisions: Decisions) -> None:
    """Raise `DepthError` for a function that may not be differentiated again."""
    if depth >= 1:
        return
    limit, name = decisions.options.depth or 0, decisions.name
    if limit == 0:
        what = f"{name} was wrapped with `depth=0` (forward only), so it cannot be differentiated."
    else:
        what = f"{name} was wrapped with `depth={limit}`, and this needs a derivative of order {limit + 1}."
    raise DepthError(
        describe(
            what,
            remedy=f"Wrap it with `depth={limit + 1}`, or `depth=None` for no limit; or use "
            "`jax.lax.stop_gradient` on arguments that need no derivative.",
        )
    )
