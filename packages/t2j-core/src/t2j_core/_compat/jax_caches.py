"""Caches of JAX that refer to functions: weakly where JAX allows it, emptied where it does not."""

from __future__ import annotations

import functools
from typing import Any

import jax

# Since jax 0.7 caches hold the parameters of primitives (`multi_weakref_lru_cache`,
# https://github.com/jax-ml/jax/pull/30009): weakly, if their class is in this set.
try:
    from jax._src.util import weakref_cache_key_types as _weak_key_types
except ImportError:
    _weak_key_types = set()


def hold_weakly(cls: type) -> None:
    """Let JAX's caches refer to instances of `cls` weakly, so that a dropped function is freed."""
    _weak_key_types.add(cls)


def forget_eager_primitives() -> None:
    """Empty JAX's cache of programs for primitives that are called eagerly, such as control flow."""
    try:
        from jax._src.dispatch import xla_primitive_callable
    except ImportError:
        return
    for cache in (xla_primitive_callable, cache_of_loops()):
        clear = getattr(cache, "cache_clear", None)
        if clear is not None:
            clear()


@functools.cache
def cache_of_loops() -> Any | None:
    """The cache in which jax 0.6 keeps the last 2,048 bodies of `scan` and `while_loop`, with all they refer to.

    None where JAX has no such cache.

    `close_jaxpr` refers to its keys weakly, but its values refer to the keys. Since jax 0.7 it returns a copy
    (https://github.com/jax-ml/jax/issues/29803).
    """
    try:
        from jax._src.interpreters.partial_eval import close_jaxpr
    except ImportError:
        return None
    jaxpr = jax.make_jaxpr(lambda: ())().jaxpr
    return close_jaxpr if close_jaxpr(jaxpr).jaxpr is jaxpr else None
