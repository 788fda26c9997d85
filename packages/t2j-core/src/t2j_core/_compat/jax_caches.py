"""Caches of JAX that own functions: held weakly where JAX lets us, emptied where it does not."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.extend.core

# jax before 0.7 has no caches that hold parameters of primitives, so nothing needs to be told to hold them weakly.
try:
    from jax._src.util import weakref_cache_key_types as _weak_key_types
except ImportError:
    _weak_key_types = set()


def hold_weakly(cls: type) -> None:
    """Let JAX's caches hold instances of `cls` by weak reference, so that a dropped function is freed."""
    _weak_key_types.add(cls)


def forget_eager_primitives() -> None:
    """Empty JAX's cache of programs for primitives that are called eagerly, control flow among them."""
    try:
        from jax._src.dispatch import xla_primitive_callable
    except ImportError:
        return
    for cache in (xla_primitive_callable, _cache_of_loops()):
        clear = getattr(cache, "cache_clear", None)
        if clear is not None:
            clear()


@functools.cache
def _cache_of_loops() -> Any | None:
    """The cache in which jax 0.6 keeps the last 2,048 bodies of `scan` and `while_loop`, with all that they own.

    It holds its keys weakly, and its values refer to them there. Since jax 0.7 `close_jaxpr` returns a copy.
    """
    try:
        from jax._src.interpreters.partial_eval import close_jaxpr
    except ImportError:
        return None
    jaxpr = jax.make_jaxpr(lambda: ())().jaxpr
    return close_jaxpr if close_jaxpr(jaxpr).jaxpr is jaxpr else None


def keeps_loops() -> bool:
    """Whether this JAX keeps a loop that was traced, and what it calls, after the last program with it is gone."""
    return _cache_of_loops() is not None
