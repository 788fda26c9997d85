"""Values of a function that is being differentiated, where nothing is kept for a backward.

A function can see that it is differentiated: `requires_grad`, `is_leaf`. It may compute another value when it is not.
So these values come from runs that autograd records too, and each graph is freed after its run. A function that never
looks runs unrecorded, because recording takes time and memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from t2j_core.extend import FlatFunction

from .. import _compat
from .._base.decisions import Shared
from .._base.errors import OUT_OF_MEMORY, first_line
from .._derivatives.flat_functions import requiring_grad, restricted
from .._workarounds.requires_grad_queries import RequiresGradQueries

logger = logging.getLogger("t2j_autodiff")


def recorded(f: FlatFunction, ins: Sequence[int], shared: Shared) -> FlatFunction:
    """`f` as in a derivative: the inputs `ins` require gradients while it runs. The results do not."""

    def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if _compat.in_transform():
            y, _ = torch.func.vjp(restricted(f, x, ins), *(x[i] for i in ins))  # type: ignore[misc]
            return tuple(y)
        with torch.enable_grad():
            y = f(*requiring_grad(x, ins))
        if _compat.has_old_function(y):  # its forward may read `ctx.needs_input_grad`
            shared.asks_for_gradients = True
        return tuple(t.detach() for t in y)

    return run


class Shown:
    """A flat function that sees that it is differentiated, if it ever asks.

    `plain` and `recorded` are the function without gradients and with them. The first run tells whether it asks.
    """

    def __init__(self, plain: FlatFunction, recorded: FlatFunction, shared: Shared) -> None:
        self.plain, self.recorded, self.shared = plain, recorded, shared

    def __call__(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        asks = self.shared.asks_for_gradients
        if asks is None:
            return self._watched(x)
        return self.recorded(*x) if asks else self.plain(*x)

    def _watched(self, x: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        queries = RequiresGradQueries()
        try:
            with _compat.as_written(), queries:
                y = self.recorded(*x)
        except OUT_OF_MEMORY:
            return self.plain(*x)
        except Exception as error:
            reason = first_line(error)
        else:
            return self._noted(x, y, queries)
        y = self.plain(*x)  # if the function itself is at fault, it raises again, and nothing is noted
        logger.info("%s cannot be recorded (%s)", self.shared.name, reason)
        self.shared.asks_for_gradients = False
        return y

    def _noted(
        self, x: Sequence[torch.Tensor], y: tuple[torch.Tensor, ...], queries: RequiresGradQueries
    ) -> tuple[torch.Tensor, ...]:
        asks = self.shared.asks_for_gradients or queries.decides is not None
        self.shared.asks_for_gradients = asks
        return self.recorded(*x) if queries.changes_course else y
