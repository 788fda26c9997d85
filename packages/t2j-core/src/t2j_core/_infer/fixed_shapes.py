"""The advice for shapes that depend on values: by the operands they depend on, or by the operation that makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .. import _compat
from .._signature.signature import Leaf

_FEW = 8


def fixed_shapes(paths: Sequence[str], operands: Sequence[Leaf], *, takes_numbers: bool | None = None) -> str:
    """The advice for shapes that depend on the values of these operands.

    `takes_numbers` says whether the function runs with Python numbers in their place; None if that is not known.
    """
    are_numbers = all(leaf.shape == () for leaf in operands)
    if may_be_numbers(operands) and (are_numbers if takes_numbers is None else takes_numbers):
        kinds = "a Python number" if are_numbers else "a tuple of Python numbers"
        return (
            f"Pass {' and '.join(paths)} as {kinds}, not as an array, so that it is a constant; under a `jax.jit` of "
            "your own, name it in `static_argnums` or `static_argnames` of that `jax.jit`."
        )
    remedy = "Pad the outputs to a fixed size inside the function, for example with a mask of the valid entries."
    if takes_numbers is None and any(leaf.shape == () and not leaf.is_inexact for leaf in operands):
        return (
            "A number among the arguments of a `jax.jit` of your own is data. If the shapes depend on it, make it a "
            f"constant with `static_argnums` or `static_argnames` of that `jax.jit`. Otherwise: {remedy}"
        )
    return remedy


def may_be_numbers(operands: Sequence[Leaf]) -> bool:
    """Whether there are operands, and each could as well be a Python number, or a few integers."""
    return len(operands) > 0 and all(map(_may_be_number, operands))


def _may_be_number(leaf: Leaf) -> bool:
    return leaf.shape == () or (len(leaf.shape) == 1 and leaf.shape[0] <= _FEW and not leaf.is_inexact)


_ADVICE = {
    "one_hot": "Name the number of classes: `one_hot(indices, num_classes=...)`.",
    "repeat_interleave": "If the repeats always have the same sum, name it: `repeat_interleave(..., output_size=...)`. "
    "Otherwise repeat all entries equally often, and return a mask of those that count.",
    "nonzero": "Find a fixed number of places, with padding behind them: `torch.nonzero_static(x, size=...)`.",
}
_NONZERO = ("nonzero", "argwhere")


class WatchShapes(_compat.FunctionMode):
    """Watches a run for a torch function that can be called so that its result has a fixed shape."""

    def __init__(self) -> None:
        super().__init__()
        self.advice: str | None = None
        """For the first such call."""

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a torch function, and keep the advice for the first of these."""
        if self.advice is None and (name := _without_fixed_shape(getattr(func, "__name__", ""), args, kwargs)):
            self.advice = _ADVICE[name]
        return func(*args, **kwargs)


def _without_fixed_shape(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """The key in `_ADVICE` for a call whose result has a shape that depends on values; None for other calls."""
    if name in _NONZERO or (name == "where" and len(args) + len(kwargs) == 1):
        return "nonzero"
    if name == "one_hot":
        return name if (args[1] if len(args) > 1 else kwargs.get("num_classes", -1)) == -1 else None
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        repeats = kwargs.get("repeats", args[-1] if len(args) < 3 else args[1])
        return name if isinstance(repeats, torch.Tensor) else None
    return None
