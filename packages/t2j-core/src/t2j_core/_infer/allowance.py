"""A limit for runs that could be done without: a made-up number may be one that a loop runs up to.

It counts work, not time, so that the same program does the same on a loaded machine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CALLS = 20_000  # of torch functions on small tensors: about a tenth of a second
_ELEMENTS_OF_A_CALL = 20_000  # so many elements take as long as a call itself


class OverdrawnError(BaseException):
    """A run does more than is left. No `except Exception` in the function catches it."""


class Allowance(TorchFunctionMode):
    """What all further runs of a function may do together. Within, calls of torch use it up, and raise then."""

    def __init__(self) -> None:
        super().__init__()
        self._left: float = _CALLS

    @property
    def is_used_up(self) -> bool:
        """Whether nothing is left."""
        return self._left <= 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.is_used_up:
            raise OverdrawnError
        elements = sum(t.numel() for t in args if type(t) is torch.Tensor)
        self._left -= 1 + elements / _ELEMENTS_OF_A_CALL
        return func(*args, **(kwargs or {}))
