"""The options of `torch2jax` that are about sharding, checked, and the types of the others."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
from t2j_core import ArgumentError, extend
from t2j_core.extend import describe

from ._specs import SpecTree, check_specs
from ._wanted import AnyMesh, Wanted


class Keywords(extend.Keywords, total=False):
    """What `**options` may hold: the options of t2j-core, and those of t2j-autodiff, which may not be installed."""

    depth: int | None
    nondiff_argnums: int | Sequence[int] | None
    nondiff_mask: Any
    use_zeros: bool
    use_torch_vjp: bool
    residuals: Literal["auto", "recompute", "graph"]
    vmap_method: Literal["auto", "vmap", "sequential", "expand_dims", "broadcast_all"]
    vmap_randomness: Literal["error", "same", "different"] | None
    vmap_chunk_size: int | None


def wanted_sharding(
    out_specs: SpecTree, output_sharding_spec: SpecTree, in_specs: SpecTree, mesh: AnyMesh | None, *, has_key: bool
) -> Wanted | None:
    """What the options say of sharding; None if nothing."""
    if out_specs is not None and output_sharding_spec is not None:
        raise ArgumentError(
            describe(
                "`out_specs` and `output_sharding_spec` are two names of one option, and both were given.",
                remedy="Pass `out_specs` only.",
            )
        )
    out_specs = output_sharding_spec if out_specs is None else out_specs
    check_specs("out_specs", out_specs)
    check_specs("in_specs", in_specs)
    if not isinstance(mesh, AnyMesh | None):
        raise ArgumentError(
            describe(
                "`mesh` must be a mesh of devices.",
                expected="a `jax.sharding.Mesh`, such as `jax.make_mesh` returns, or None",
                got=repr(mesh),
                remedy="Pass the mesh itself, not a sharding or its axis names.",
            )
        )
    if out_specs is not None:
        return Wanted(out_specs, in_specs, mesh, has_key=has_key)
    if in_specs is None and mesh is None:
        return None
    raise ArgumentError(
        describe(
            "`in_specs` and `mesh` need `out_specs`: how the outputs are split cannot be told from the inputs.",
            expected='`out_specs`, such as `P("data")`, or `P()` for replicated outputs',
            got="None",
            remedy="Pass `out_specs=`.",
        )
    )


def with_lock(fn: Callable[..., Any], lock: object) -> Callable[..., Any]:
    """`fn`, or if `lock` says so, `fn` that runs once at a time."""
    if isinstance(lock, (bool, np.bool_)):
        return _one_at_a_time(fn, threading.Lock()) if lock else fn
    if isinstance(lock, AbstractContextManager):
        return _one_at_a_time(fn, lock)
    raise ArgumentError(
        describe(
            "`lock` must be a bool or a lock.",
            expected="True, False, or a lock such as `threading.Lock()`",
            got=repr(lock),
            remedy="Pass `lock=True` for a lock of the function's own.",
        )
    )


def _one_at_a_time(fn: Callable[..., Any], lock: AbstractContextManager[Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return fn(*args, **kwargs)

    return locked
