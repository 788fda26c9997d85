"""An end of the patience with runs that could be done without: a made-up number may be one that a loop runs up to."""

from __future__ import annotations

import time
from typing import Any

from torch.overrides import TorchFunctionMode


class OutOfTimeError(BaseException):
    """A run has taken too long. No `except Exception` in the function catches it."""


class Deadline(TorchFunctionMode):
    """Within, every function of torch raises after a time."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self._end = end

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.monotonic() > self._end:
            raise OutOfTimeError
        return func(*args, **(kwargs or {}))
