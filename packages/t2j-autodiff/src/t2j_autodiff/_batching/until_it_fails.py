"""A batch in one run until that fails; then, and from then on, one example after another."""

from __future__ import annotations

import torch
from t2j_core import PerformanceWarning
from t2j_core.extend import is_traced_ahead, warn

from .. import _compat
from .._base.errors import OUT_OF_MEMORY, first_line
from .at_once import AtOnce, HiddenGradientError, NotFaithfulError, kind_of_run
from .in_turn import InTurn


class AtOnceUntilItFails:
    """`torch.func.vmap` until it fails. `Decisions.vmap_failures` keeps what has failed."""

    def __init__(self, at_once: AtOnce, in_turn: InTurn) -> None:
        self.at_once, self.in_turn, self.kind = at_once, in_turn, at_once.kind

    def __call__(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        decisions = self.at_once.decisions
        kind = kind_of_run(self.kind, x)
        if (known := decisions.vmap_failure(kind)) is not None:
            return self._run_in_turn(x, known)
        try:
            return self.at_once(*x)
        except Exception as error:
            if self._is_for_the_caller(error):
                raise
            is_out_of_memory = isinstance(error, OUT_OF_MEMORY)
            reason = str(error) if isinstance(error, NotFaithfulError) else first_line(error)
        y = self._run_in_turn(x, reason)  # outside of `except`: the traceback holds what the function has allocated
        is_known = reason in decisions.vmap_failures.values()
        if not is_out_of_memory:
            decisions.vmap_failures["value" if kind == "record" else kind] = reason
        if not is_known:
            warn(
                _slow(decisions.name, self.at_once.size, reason, is_out_of_memory=is_out_of_memory), PerformanceWarning
            )
        return y

    def _run_in_turn(self, x: tuple[torch.Tensor, ...], reason: str) -> tuple[torch.Tensor, ...]:
        return self.in_turn.run(x, f", because torch.func.vmap cannot batch it ({reason})")

    def _is_for_the_caller(self, error: Exception) -> bool:
        """Whether to raise an exception rather than run one example after another."""
        if _compat.in_transform() or is_traced_ahead():  # the outermost batch decides, or a call
            return True
        if self.kind == "record" and isinstance(error, (*OUT_OF_MEMORY, HiddenGradientError)):  # then no graph is kept
            return True
        asks_for_error = self.at_once.decisions.options.vmap_randomness == "error"
        return asks_for_error and "randomness" in str(error)


def _slow(name: str, size: int, reason: str, *, is_out_of_memory: bool) -> str:
    remedy = (
        "`vmap_chunk_size=` to run fewer at once" if is_out_of_memory else '`vmap_method="sequential"` to choose that'
    )
    return (
        f"`torch.func.vmap` cannot batch {name} ({reason}), so the {size} examples run one after another. "
        f"Pass {remedy}."
    )
