"""What the operators of torch declare: their arguments, and that they draw random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from t2j_core.extend import DispatchMode


class RandomOperations(DispatchMode):
    """Notes whether an operation of this thread draws random numbers."""

    found = False

    def handle(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, and note whether it draws."""
        self.found |= torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
        return self.operate(func, args, kwargs)


def argument_of(operator: torch._ops.OpOverload, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The value of the argument `name` in a call, or its default; None if the operator has no such argument."""
    for position, argument in enumerate(operator._schema.arguments):
        if argument.name == name:
            return args[position] if position < len(args) else kwargs.get(name, argument.default_value)
    return None
