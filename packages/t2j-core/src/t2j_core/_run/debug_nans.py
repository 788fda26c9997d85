"""NaN and infinity in the results of eager calls, under `jax_debug_nans` and `jax_debug_infs`.

JAX checks its own primitives where they run eagerly, and what a jitted function returns. The program behind an eager
torch call is neither, so its outputs are checked here. Residuals are not checked: no user sees them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_CHECKS = {"nan": ("jax_debug_nans", np.isnan), "inf": ("jax_debug_infs", np.isinf)}


def wanted_checks() -> tuple[str, ...]:
    """What JAX is configured to look for: "nan", "inf"."""
    config: Any = jax.config
    if config.jax_debug_nans or config.jax_debug_infs:
        return tuple(kind for kind, (flag, _) in _CHECKS.items() if getattr(config, flag))
    return ()


def without_checks() -> contextlib.AbstractContextManager[Any]:
    """A context in which JAX looks for neither.

    Where JAX finds one in what a jitted function returns, it calls the function again, operation by operation. That of
    an eager torch call would bind the primitive, and end in an eager torch call again.
    """
    stack = contextlib.ExitStack()
    stack.enter_context(jax.debug_nans(False))
    stack.enter_context(jax.debug_infs(False))
    return stack


def check_numbers(name: str, results: Iterable[jax.Array], kinds: Iterable[str]) -> None:
    """Raise the error of JAX's own primitives if a result has a number of one of these kinds."""
    for result in results:
        if not jnp.issubdtype(result.dtype, jnp.inexact):
            continue
        for kind in kinds:
            if any(_CHECKS[kind][1](np.asarray(shard.data)).any() for shard in result.addressable_shards):
                raise FloatingPointError(f"invalid value ({kind}) encountered in the torch function {name}")
