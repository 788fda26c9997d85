"""How the pushforward of one function is computed, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_CHECKS = 3  # runs that are compared at most: one, unless all numbers of a run are zero


@dataclass(eq=False)
class JvpDecision:
    """Forward mode until it fails, then the transpose of the pullback, then rows of the Jacobian.

    `report` is called with the way and its reasons whenever they change.
    """

    report: Callable[[str], None]
    failure: str | None = None  # why `torch.func.jvp` is not used
    rows_because: str | None = None  # why the pullback is not transposed either
    checks: int = 0  # runs that were compared with reverse mode
    is_confirmed: bool = False  # one of them agreed

    @property
    def is_settled(self) -> bool:
        """Whether no run has to be compared any more."""
        return self.failure is not None or self.is_confirmed or self.checks >= _CHECKS

    def use_reverse_mode(self, failure: str) -> None:
        """Do without `torch.func.jvp` from now on."""
        self.failure = failure
        self._report()

    def use_rows(self, reason: str) -> None:
        """Compute rows of the Jacobian from now on."""
        self.rows_because = reason
        self._report()

    def _report(self) -> None:
        if self.failure is not None:
            how = "transposed reverse mode" if self.rows_because is None else "rows of the Jacobian"
            reasons = (self.failure, self.rows_because)
            self.report(f"{how} ({'; '.join(reason for reason in reasons if reason is not None)})")
