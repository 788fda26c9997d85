"""Functions that draw random numbers without a JAX key: whether they do so at every call, and the warning."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.utils._pytree as torch_tree

from .. import _compat
from .._base.errors import T2jWarning, warn
from .apart import apart
from .draws import Draws, WatchDraws, WatchReads, generator_states
from .failures import first_line
from .traced_ahead import is_traced_ahead

logger = logging.getLogger("t2j_core")


def draws_without_key(name: str) -> str:
    """The warning for a function that draws without a key."""
    return (
        f"{name} draws random numbers without a key. To JAX it is a pure function: equal calls under `jax.jit` may "
        "become one, with the same numbers in each place (one dropout mask for two views), and a derivative that runs "
        "it again draws other numbers. Wrap it with `rng=True` and pass a JAX key first; or pass `train=False` for a "
        "module that should not draw at all."
    )


def is_random(name: str, run: Callable[[Draws], object]) -> bool:
    """Whether a function that drew random numbers draws again: not if its first call initialised something."""
    try:
        draws, states = _watched(name, run)
        return draws or (bool(states) and states != _watched(name, run)[1])
    except Exception as reason:  # a function that ran once may raise when run again, or in a dispatch mode
        logger.info("cannot tell whether %s draws random numbers (%s)", name, first_line(reason))
        return False


def _watched(name: str, run: Callable[[Draws], object]) -> tuple[bool, list[bytes]]:
    """Whether a run draws from the default generators as it finds them, and the states of others that it draws from."""
    with apart(name):
        draws = Draws.with_private_seed()
        with WatchReads(draws):
            run(draws)
        return draws.any(), draws.others


_CHECKS = 2  # how many calls are watched


def warning_of_draws(fn: Callable[..., Any], name: str, noted: set[str]) -> Callable[..., Any]:
    """`fn`, whose outputs are declared, so that no inference has run it; it warns if its first calls draw numbers.

    A call after which the default generators are in another state is repeated, to find out whether it was this function
    that drew, whether it seeds them itself, and whether its results depend on what it drew.
    """
    checks = itertools.count()
    is_over = False

    @functools.wraps(fn)
    def run(*args: object, **kwargs: object) -> Any:
        nonlocal is_over
        if is_over or _compat.is_transformed() or is_traced_ahead():
            return fn(*args, **kwargs)
        is_over = next(checks) >= _CHECKS or "random" in noted
        before = generator_states()
        result = fn(*args, **kwargs)
        if is_over or all(map(torch.equal, before, generator_states())):
            return result
        if is_random(name, functools.partial(_again, fn, args, kwargs)):
            is_over = True
            noted.add("random")
            warn(draws_without_key(name), T2jWarning)
        return result

    return run


def _again(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], draws: Draws) -> None:
    args, kwargs = torch_tree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))  # `fn` may write into them
    with WatchDraws(draws):
        draws.returned(fn(*args, **kwargs))
