"""A batch in one run until that fails; then, and from then on, one example after another."""

from __future__ import annotations

import torch
from t2j_core import PerformanceWarning
from t2j_core.extend import warn

from .. import _compat
from .._base.errors import OUT_OF_MEMORY, first_line
from .at_once import AtOnce, HiddenGradientError, NotFaithfulError, is_recorded
from .in_turn import InTurn


class AtOnceUntilItFails:
    """`torch.func.vmap` until it fails. All functions derived from one remember what failed, by kind."""

    def __init__(self, at_once: AtOnce, in_turn: InTurn, kind: str) -> None:
        self.at_once, self.in_turn, self.kind = at_once, in_turn, kind

    def __call__(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shared = self.at_once.shared
        kind = "recorded value" if self.kind == "value" and is_recorded(x) else self.kind
        if shared.vmap_failure(kind) is not None:
            return self.in_turn(*x)
        try:
            return self.at_once(*x)
        except Exception as error:
            if self._is_for_the_caller(error):
                raise
            is_short = isinstance(error, OUT_OF_MEMORY)
            reason = str(error) if isinstance(error, NotFaithfulError) else first_line(error)
        y = self.in_turn(*x)  # outside of `except`: the traceback holds what the function has allocated
        is_known = reason in shared.vmap_failures.values()
        if not is_short:
            shared.vmap_failures["value" if kind == "record" else kind] = reason
        if not is_known:
            warn(_slow(shared.name, self.at_once.size, reason, is_short=is_short), PerformanceWarning)
        return y

    def _is_for_the_caller(self, error: Exception) -> bool:
        """Whether an exception is raised on, in place of another try one example after another."""
        if _compat.in_transform():  # the outermost batch decides
            return True
        if self.kind == "record" and isinstance(error, (*OUT_OF_MEMORY, HiddenGradientError)):  # it can be left out
            return True
        asks_for_error = self.at_once.shared.options.vmap_randomness == "error"
        return asks_for_error and "randomness" in str(error)


def _slow(name: str, size: int, reason: str, *, is_short: bool) -> str:
    remedy = "`vmap_chunk_size=` to run fewer at once" if is_short else '`vmap_method="sequential"` to choose that'
    return (
        f"`torch.func.vmap` cannot batch {name} ({reason}), so the {size} examples run one after another. "
        f"Pass {remedy}."
    )
