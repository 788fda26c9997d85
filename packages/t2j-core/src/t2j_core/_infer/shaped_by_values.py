"""Operations whose results have shapes that depend on values, and how each is called so that they do not."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_ADVICE = {
    "one_hot": "Name the number of classes: `one_hot(indices, num_classes=...)`.",
    "repeat_interleave": "If the repeats always have the same sum, name it: `repeat_interleave(..., output_size=...)`. "
    "Otherwise repeat all entries equally often, and return a mask of those that count.",
    "nonzero": "Find a fixed number of places, with padding behind them: `torch.nonzero_static(x, size=...)`.",
}
_NONZERO = ("nonzero", "argwhere")


class ShapedByValues(TorchFunctionMode):
    """Notes such operations of a run; `advice` is for the first."""

    def __init__(self) -> None:
        super().__init__()
        self.advice: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.advice is None and (name := _unfixed(getattr(func, "__name__", ""), args, kwargs)):
            self.advice = _ADVICE[name]
        return func(*args, **kwargs)


def _unfixed(name: str, args: Any, kwargs: Any) -> str | None:
    if name in _NONZERO or (name == "where" and len(args) + len(kwargs) == 1):
        return "nonzero"
    if name == "one_hot":
        return name if (args[1] if len(args) > 1 else kwargs.get("num_classes", -1)) == -1 else None
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        repeats = kwargs.get("repeats", args[-1] if len(args) < 3 else args[1])
        return name if isinstance(repeats, torch.Tensor) else None
    return None
