"""A warning for functions whose forward draws random numbers, where a derivative runs it again."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

import torch
from t2j_core import T2jWarning
from t2j_core.extend import FlatFunction, generator_states, warn

from .. import _compat
from .._base.decisions import Decisions
from .._base.errors import first_line

logger = logging.getLogger("t2j_autodiff")

_CHECKS = 3  # how many runs are watched


def warn_if_random(f: FlatFunction, decisions: Decisions) -> FlatFunction:
    """`f`, which runs a forward again, with a warning if it draws random numbers: the forward drew others."""
    checks = itertools.count()

    def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if decisions.has_key or decisions.is_random or next(checks) >= _CHECKS:
            return f(*x)
        states = generator_states()
        y = f(*x)
        if not all(map(torch.equal, states, generator_states())) and _draws(f, x):
            decisions.is_random = True
            warn(
                f"{decisions.name} draws random numbers, and its derivative drew other ones than its value. "
                "Wrap it with `rng=True` and pass a JAX key.",
                T2jWarning,
            )
        return y

    return run


def _draws(f: FlatFunction, x: Sequence[torch.Tensor]) -> bool:
    """Whether it was `f` that drew from torch's generators, which all threads share: it is run once more."""
    operations = _compat.RandomOperations()
    try:
        with operations:
            f(*x)
    except Exception as error:  # a function may run without a dispatch mode and fail in one
        logger.info("cannot tell whether a function draws random numbers (%s)", first_line(error))
        return True
    return operations.found
