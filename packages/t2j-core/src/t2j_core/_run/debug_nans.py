"""NaN and infinity in the results of eager calls, for whoever has asked JAX to look for them.

JAX checks its own primitives where they run eagerly, and what a jitted function returns. The program behind an eager
torch call is neither: its outputs are checked here. What is only kept for a backward is not: no user sees it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_QUESTIONS = {"nan": ("jax_debug_nans", np.isnan), "inf": ("jax_debug_infs", np.isinf)}


def wanted_checks() -> tuple[str, ...]:
    """What JAX is told to look for: "nan", "inf"."""
    config: Any = jax.config
    if config.jax_debug_nans or config.jax_debug_infs:
        return tuple(kind for kind, (flag, _) in _QUESTIONS.items() if getattr(config, flag))
    return ()


def without_checks() -> contextlib.AbstractContextManager[Any]:
    """Within, JAX looks for neither. It would call a program's function again, without end: that is an eager call."""
    stack = contextlib.ExitStack()
    stack.enter_context(jax.debug_nans(False))
    stack.enter_context(jax.debug_infs(False))
    return stack


def check_numbers(name: str, results: Iterable[Any], kinds: Iterable[str]) -> None:
    """Raise the error of JAX's own primitives if one of the results has a number of these kinds."""
    for result in results:
        if not jnp.issubdtype(result.dtype, jnp.inexact):
            continue
        for kind in kinds:
            if any(_QUESTIONS[kind][1](np.asarray(shard.data)).any() for shard in result.addressable_shards):
                raise FloatingPointError(f"invalid value ({kind}) encountered in the torch function {name}")
