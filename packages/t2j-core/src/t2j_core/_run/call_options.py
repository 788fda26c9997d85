"""`CallOptions`: what a call needs of the options of `torch2jax`."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class CallOptions:
    """How the calls of a function run. Each field is the option of `torch2jax` of the same name.

    No field has a default, so that no maker of one can leave an option out.
    """

    outputs: str
    arguments: str
    has_side_effect: bool
    name: str | None
    rng: bool
    compile: bool
    command_buffer: bool

    def of_derived(self) -> CallOptions:
        """The options of a derived function: it takes no `out=`, and no other process finds it by name."""
        return replace(self, outputs="auto" if self.outputs == "out" else self.outputs, name=None)
