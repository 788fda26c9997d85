"""`Source`: a flat function that is to be compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch.fx import GraphModule

from .._signature.signature import Leaf


class Attempted(Protocol):
    """A function that may be compiled."""

    def compile(self, device: torch.device) -> Any:
        """Compile it, if it can be; None otherwise."""
        ...


class Source(NamedTuple):
    """A flat function that is to be compiled for its signature."""

    name: str
    call: Callable[..., Sequence[torch.Tensor]]
    operands: Sequence[Leaf]
    results: Sequence[Leaf]
    has_key: bool
    """Whether the first operand is a key that seeds torch's generators."""
    keeps_operands: bool
    """Whether the compiled function takes all operands, also those that it does not use."""
    obstacle: str | None
    """Why it cannot be compiled, if that is known before."""
    graph: Callable[[torch.device], GraphModule | None] | None
    """A graph of it on a device, if there is one already. It is changed."""
    example: Callable[[], tuple[Attempted, Sequence[int | None]]] | None
    """If it is a batch: the function of one example, and which of the operands have the batch axis."""
    runs_in_turn: bool
    """Whether the examples run one after another."""
