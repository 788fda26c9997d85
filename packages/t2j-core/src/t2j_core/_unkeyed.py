"""Whether a function that drew random numbers without a key does so at every call."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ._advice import first_line
from ._apart import apart
from ._randomness import Draws, WatchReads

logger = logging.getLogger("t2j_core")


def is_random(name: str, run: Callable[[Draws], object]) -> bool:
    """Whether a function that drew random numbers does so again: not if it initialised something with them."""
    try:
        with apart(name):
            draws = Draws.with_private_seed()
            with WatchReads(draws):
                run(draws)
            return draws.any()
    except Exception as reason:  # what ran once need not run twice, nor in a dispatch mode
        logger.info("cannot tell whether %s draws random numbers (%s)", name, first_line(reason))
        return False
