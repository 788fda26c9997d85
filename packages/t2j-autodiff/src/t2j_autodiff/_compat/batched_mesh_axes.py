"""Mesh axes over which a batch is split, in its batching rule."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

_core: Any = importlib.import_module("jax._src.core")
_AxisEnv: Any = getattr(_core, "AxisEnv", None)
# jax 0.8: a batching rule sees the Explicit axes of the batch as axes that `jax.shard_map` must not use (`AxisEnv` in
# jax/_src/core.py). Since jax 0.9 `remove_explicit_mesh_axis_names` takes them off.
_HIDES_AXES = hasattr(_AxisEnv, "add_explicit_mesh_axis_names") and not hasattr(
    _AxisEnv, "remove_explicit_mesh_axis_names"
)


@contextlib.contextmanager
def batched_mesh_axes() -> Iterator[None]:
    """Within a batching rule, allow `jax.shard_map` over the Explicit axes that the batch is split over."""
    if not _HIDES_AXES:
        yield
        return
    env = _core.get_axis_env()
    _core.trace_ctx.set_axis_env(_AxisEnv(env.axis_sizes, env.spmd_axis_names, frozenset()))
    try:
        yield
    finally:
        _core.trace_ctx.set_axis_env(env)
