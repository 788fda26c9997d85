"""Whether a function that drew random numbers without a key does so at every call."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as torch_tree

from .. import _compat
from .._base.errors import T2jWarning, warn
from .advice import first_line
from .apart import apart
from .randomness import Draws, Watch, WatchReads, generator_states, told

logger = logging.getLogger("t2j_core")


def is_random(name: str, run: Callable[[Draws], object]) -> bool:
    """Whether a function that drew random numbers does so again: not if it initialised something with them."""
    try:
        draws, states = _watched(name, run)
        return draws or (bool(states) and states != _watched(name, run)[1])
    except Exception as reason:  # what ran once need not run twice, nor in a dispatch mode
        logger.info("cannot tell whether %s draws random numbers (%s)", name, first_line(reason))
        return False


def _watched(name: str, run: Callable[[Draws], object]) -> tuple[bool, list[bytes]]:
    """Whether a run draws from the default generators as they are, and the states of others that it draws from."""
    with apart(name):
        draws = Draws.with_private_seed()
        with WatchReads(draws):
            run(draws)
        return draws.any(), draws.others


_CHECKS = 2  # how many calls are watched


def telling_of_draws(call: Callable[..., Any], name: str, already_told: set[str]) -> Callable[..., Any]:
    """`call`, which no inference has tried out, with a warning where its first calls draw random numbers.

    A call after which the default generators are in another state is repeated, to tell whether it was this function
    that drew, whether it seeds them itself, and whether its results show what it drew.
    """
    checks = itertools.count()
    is_over = False

    @functools.wraps(call)
    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_over
        if is_over or _compat.is_transformed():
            return call(*args, **kwargs)
        is_over = next(checks) >= _CHECKS or "random" in already_told
        before = generator_states()
        answer = call(*args, **kwargs)
        if is_over or all(map(torch.equal, before, generator_states())):
            return answer
        if is_random(name, functools.partial(_again, call, args, kwargs)):
            is_over = True
            already_told.add("random")
            warn(told(name), T2jWarning)
        return answer

    return run


def _again(call: Callable[..., Any], args: Any, kwargs: Any, draws: Draws) -> None:
    args, kwargs = torch_tree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))  # it may write into them
    with Watch(draws):
        draws.returned(call(*args, **kwargs))
