"""What all functions derived from one wrapped function share: options, and what running it has shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from t2j_core.extend import Lending

from .options import DiffOptions


@dataclass(eq=False)
class Shared:
    """Options, and what running the function has shown. Written from several threads, one plain value at a time."""

    name: str
    options: DiffOptions
    has_key: bool = False  # the first operand is a JAX key
    paths: tuple[str, ...] = ()  # what the operands are called
    lending: Lending | None = None  # where every call is to be checked (`arguments="check"`)
    vmap_failures: dict[str, str] = field(default_factory=dict)  # why `torch.func.vmap` is not used, for each kind
    forward_modes: dict[str, str] = field(default_factory=dict)  # what takes the place of `torch.func.jvp`, and why
    asks_for_gradients: bool | None = None  # whether it looks at `requires_grad` and the like; None while unknown
    goes_one_way: bool = False  # values decide nothing of what it does
    normalises: bool | None = None  # whether it calls what has plain operations in `_norms`; None while unknown
    is_random: bool = False  # it was seen to draw unseeded random numbers
    residuals: dict[str, str] = field(default_factory=dict)  # how derivatives of each signature get their residuals

    def vmap_failure(self, kind: str) -> str | None:
        """Why a batch of values ("value"), pullbacks ("vjp") or pushforwards ("jvp") runs in turn.

        What cannot be batched itself has derivatives that cannot be either; the reverse is not true.
        """
        return self.vmap_failures.get(kind, self.vmap_failures.get("value"))
