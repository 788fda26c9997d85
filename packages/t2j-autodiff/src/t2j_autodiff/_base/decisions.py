"""What all functions derived from one wrapped function share: its options, and what its runs have shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from t2j_core.extend import Lending, remember

from .options import DiffOptions


@dataclass(eq=False)
class Shared:
    """Options and decisions. Several threads write them, one field or one entry of a table at a time."""

    name: str
    options: DiffOptions
    has_key: bool = False  # the first operand is a JAX key
    paths: tuple[str, ...] = ()  # what the operands are called
    lending: Lending | None = None  # checks each call (`arguments="check"`)
    vmap_failures: dict[str, str] = field(default_factory=dict)  # by kind, why `torch.func.vmap` is not used
    forward_modes: dict[str, str] = field(default_factory=dict)  # by signature, what replaces `torch.func.jvp`, and why
    asks_for_gradients: bool | None = None  # whether it looks at `requires_grad` and the like; None while unknown
    goes_one_way: bool = False  # no values of operands decide which operations it runs
    normalises: bool | None = None  # whether it calls what `_workarounds/norms.py` replaces; None while unknown
    is_random: bool = False  # it drew random numbers from torch's generators
    residuals: dict[str, str] = field(default_factory=dict)  # by signature, how derivatives get their residuals

    def explain_residuals(self, label: str, text: str) -> None:
        """Set the line of `explain()` for how derivatives get their residuals."""
        if label in self.residuals:
            self.residuals[label] = text
        else:
            remember(self.residuals, label, text)

    def vmap_failure(self, kind: str) -> str | None:
        """Why a batch of values ("value"), pullbacks ("vjp") or pushforwards ("jvp") runs one after another.

        A function that cannot be batched has derivatives that cannot be either; the reverse does not hold.
        """
        return self.vmap_failures.get(kind, self.vmap_failures.get("value"))
