"""An upper bound on the work of optional runs: a made-up number may be one that a loop counts up to.

It counts work instead of time, so that a program does the same on a loaded machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import _compat

_CALLS = 20_000  # of torch functions on small tensors: about a tenth of a second
_ELEMENTS_OF_A_CALL = 20_000  # this many take as long as the call itself


class OverdrawnError(BaseException):
    """A run needs more than is left. Not an `Exception`, so that the function cannot handle it by accident."""


class Allowance(_compat.FunctionMode):
    """The work that all further runs of a function may do together. A torch function called within uses some of it.

    Once nothing is left, the next call of a torch function raises `OverdrawnError`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._left: float = _CALLS

    @property
    def is_used_up(self) -> bool:
        """Whether nothing is left."""
        return self._left <= 0

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a torch function, and count its work."""
        if self.is_used_up:
            raise OverdrawnError
        elements = sum(t.numel() for t in args if type(t) is torch.Tensor)
        self._left -= 1 + elements / _ELEMENTS_OF_A_CALL
        return func(*args, **kwargs)
