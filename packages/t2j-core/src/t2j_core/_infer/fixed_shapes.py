"""What to do where shapes depend on the values of operands."""

from __future__ import annotations

from collections.abc import Sequence

from .._signature.signature import Leaf

_FEW = 8


def fixed_shapes(paths: Sequence[str], operands: Sequence[Leaf], *, takes_numbers: bool | None = None) -> str:
    """What to do where shapes depend on the values of some operands.

    `takes_numbers` says whether the function runs with Python numbers in their place; None if that is not known.
    """
    is_one_each = all(leaf.shape == () for leaf in operands)
    if may_be_numbers(operands) and (is_one_each if takes_numbers is None else takes_numbers):
        kinds = "a Python number" if is_one_each else "a tuple of Python numbers"
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
    """Whether each operand could as well be a Python number, or a few integers."""
    return len(operands) > 0 and all(map(_is_number, operands))


def _is_number(leaf: Leaf) -> bool:
    """Whether an operand could as well be a Python number, or a few integers."""
    return leaf.shape == () or (len(leaf.shape) == 1 and leaf.shape[0] <= _FEW and not leaf.is_inexact)
