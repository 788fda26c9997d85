"""`Decisions`: what holds for all functions derived from one wrapped function with one signature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from t2j_core.extend import Lending, remember

from .options import DiffOptions

BatchKind = Literal[
    "value",  # the function
    "record",  # the function in a forward whose autograd graph is to be kept
    "recorded value",  # the function, where the whole batch is differentiated
    "value beside derivatives",  # the function as each example of it is differentiated
    "vjp",  # a pullback
    "jvp",  # a pushforward
    "derivative",  # something else that holds derivatives, such as a traced function
    "derivative of a batch",  # a pullback or pushforward of the function of a batch
]
"""What runs over a batch. Torch may fail to batch one kind where it can batch another."""


@dataclass(eq=False)
class Decisions:
    """What the user has decided, by options, and what runs have shown.

    Derivatives and batches of a function have the decisions of the function. Several threads write them, one field or
    one entry of a table at a time.
    """

    name: str  # of the function, for errors and warnings
    options: DiffOptions
    has_key: bool = False  # the first operand is a JAX key
    draws_on_device: bool = False  # on a GPU, without a wait for the key
    paths: tuple[str, ...] = ()  # what the operands are called
    lending: Lending | None = None  # checks each call (`arguments="check"`)
    vmap_failures: dict[BatchKind, str] = field(default_factory=dict)  # why `torch.func.vmap` is not used
    forward_modes: dict[str, str] = field(default_factory=dict)  # by signature, what replaces `torch.func.jvp`, and why
    asks_for_gradients: bool | None = None  # whether it reads `requires_grad` and the like; None while unknown
    runs_same_operations: bool = False  # whatever the values of its operands are
    has_norms: bool | None = None  # whether it calls what `_workarounds.norms` replaces; None while unknown
    compiles: bool = False  # what is derived from it is compiled
    is_captured: bool = False  # XLA may capture what is derived from it, in command buffers
    noted: set[str] = field(default_factory=set)  # what users were warned of (`Lending.noted`)
    is_random: bool = False  # it drew random numbers from torch's generators
    residuals: dict[str, str] = field(default_factory=dict)  # by signature, how derivatives get their residuals
    batches: dict[tuple[BatchKind, int], str] = field(default_factory=dict)  # by kind and size, how they ran last

    def explain_batch(self, kind: BatchKind, size: int, text: str) -> None:
        """Set the part of `explain()` that says how batches of this kind and size run."""
        if (kind, size) in self.batches:
            self.batches[kind, size] = text
        else:
            remember(self.batches, (kind, size), text)

    def explain_residuals(self, label: str, text: str) -> None:
        """Set the line of `explain()` for how derivatives get their residuals."""
        if label in self.residuals:
            self.residuals[label] = text
        else:
            remember(self.residuals, label, text)

    def vmap_failure(self, kind: BatchKind) -> str | None:
        """Why a batch of this kind runs one example after another; None if it does not.

        A function that cannot be batched has derivatives that cannot be either; the reverse does not hold.
        """
        return self.vmap_failures.get(kind, self.vmap_failures.get("value"))
