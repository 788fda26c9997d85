"""Which autograd graphs of a function are kept: what its runs have shown."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch

from .._batching.batch_axes import BatchAxes
from .protocol import DifferentiatedFunction

logger = logging.getLogger("t2j_autodiff")

_MUCH = 16


class Keeping:
    """Whether the graphs of one function are kept. `explain()` shows each change."""

    def __init__(self, function: DifferentiatedFunction) -> None:
        self.has_pullback = False  # a backward has been asked for
        self.has_run_forward_mode = False  # a forward-mode derivative has run
        self.can_batch = True  # one graph can be pulled back along many cotangents at once
        self._function = function
        self._reason_not_kept: str | None = None
        self._reason_no_batch_is_kept: str | None = None
        self._calls_out_of_memory = 0
        function.explain("kept autograd graph")

    def give_up(self, reason: str) -> None:
        """Run the forward again in every backward from now on."""
        self._reason_not_kept = reason
        self._function.explain(f"recompute ({reason})")

    def give_up_batches(self, reason: str) -> None:
        """Run the forward again in the backward of every batch from now on."""
        if self._reason_no_batch_is_kept is None:
            self._reason_no_batch_is_kept = reason
            self._function.explain(f"recompute ({reason})", " in batches")

    def note_out_of_memory(self) -> None:
        """Note a call whose forward runs again because memory was short. Later calls keep their graphs."""
        self._calls_out_of_memory += 1
        self._function.explain(
            f"kept autograd graph, except in calls that ran out of memory ({self._calls_out_of_memory})"
        )

    def note_not_batched(self, reason: str) -> None:
        """Note a backward that torch cannot batch over cotangents."""
        self.can_batch = False
        logger.info("%s: the kept graph cannot be batched (%s)", self._function.label, reason)

    @property
    def is_given_up(self) -> bool:
        """Whether no graph is kept."""
        return self._reason_not_kept is not None

    def is_wanted(self, x: Sequence[torch.Tensor], axes: BatchAxes) -> bool:
        """Whether to keep the graph of a call with the operands `x`."""
        if self.is_given_up or (self.has_run_forward_mode and not self.has_pullback):
            return False
        if not axes:
            return True
        return self._reason_no_batch_is_kept is None and 0 not in axes.sizes and not self._repeats_much(x, axes)

    def _repeats_much(self, x: Sequence[torch.Tensor], axes: BatchAxes) -> bool:
        """Whether recording for a batch multiplies each small example by its own copy of large weights.

        Running the forward again in the backward is quicker then: there one product with the weights serves all.
        """
        has_axis = [any(axis.has(i) for axis in axes) for i in range(len(x))]
        of_all = max((x[i].numel() for i in self._function.ins if not has_axis[i]), default=0)
        count = math.prod(axes.sizes)
        of_example = max((t.numel() // count for t, batched in zip(x, has_axis, strict=True) if batched), default=0)
        return of_all > _MUCH * of_example
