"""Values of a function that is differentiated, where no graph is kept for a backward.

A function can ask whether it is differentiated (`requires_grad`, `is_leaf`), and return another value if it is. So
autograd records the runs for these values too, and each graph is freed after its run. Recording takes time and memory,
so the runs of a function that never asks are not recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from t2j_core.extend import FlatFunction

from .. import _compat
from .._base.decisions import Decisions
from .._base.errors import OUT_OF_MEMORY, first_line
from .._derivatives.flat_functions import requiring_grad, restricted
from .._workarounds.requires_grad_queries import RequiresGradQueries

logger = logging.getLogger("t2j_autodiff")


def recorded(f: FlatFunction, ins: Sequence[int], decisions: Decisions) -> FlatFunction:
    """`f`, recorded: the operands `ins` require gradients while it runs. The results do not."""

    def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if _compat.in_transform():
            y, _ = torch.func.vjp(restricted(f, x, ins), *(x[i] for i in ins))  # type: ignore[misc]
            return tuple(y)
        with torch.enable_grad():
            y = f(*requiring_grad(x, ins))
        if _compat.has_old_function(y):  # its forward may read `ctx.needs_input_grad`
            decisions.asks_for_gradients = True
        return tuple(t.detach() for t in y)

    return run


class RecordedIfItAsks:
    """A flat function whose runs are recorded if it asks whether it is differentiated. The first run shows that.

    `unrecorded` and `recorded` are the function without gradients and with them.
    """

    def __init__(self, unrecorded: FlatFunction, recorded: FlatFunction, decisions: Decisions) -> None:
        self.unrecorded, self.recorded, self.decisions = unrecorded, recorded, decisions

    def __call__(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        asks = self.decisions.asks_for_gradients
        if asks is None:
            return self._watched(x)
        return self.recorded(*x) if asks else self.unrecorded(*x)

    def _watched(self, x: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        queries, reason = RequiresGradQueries(), None
        try:
            with _compat.as_written(), queries:
                y = self.recorded(*x)
        except OUT_OF_MEMORY:
            pass  # run it outside of `except`: the traceback holds what the function has allocated
        except Exception as error:
            reason = first_line(error)
        else:
            return self._noted(x, y, queries)
        y = self.unrecorded(*x)  # if the function itself is at fault, it raises again, and nothing is noted
        if reason is not None:
            logger.info("%s cannot be recorded (%s)", self.decisions.name, reason)
            self.decisions.asks_for_gradients = False
        return y

    def _noted(
        self, x: Sequence[torch.Tensor], y: tuple[torch.Tensor, ...], queries: RequiresGradQueries
    ) -> tuple[torch.Tensor, ...]:
        asks = self.decisions.asks_for_gradients or queries.decides is not None
        self.decisions.asks_for_gradients = asks
        return self.recorded(*x) if queries.changes_course else y
