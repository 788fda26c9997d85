"""`FunctionRules`: what the rules of JAX's transformations know of a function."""

from __future__ import annotations

from t2j_core.extend import FlatFunction, Rules, TorchFn

from .._base.decisions import Decisions
from .._base.memo import Memo
from .._batching.batch_axes import NO_AXES, BatchAxes, BatchAxis, Dims
from .._derivatives.vjp_of_jvp import VjpOfJvp


class FunctionRules(Rules[TorchFn]):
    """A function as torch differentiates and batches it, and what it is derived from."""

    def __init__(
        self,
        flat_function: FlatFunction,
        depth: float,
        decisions: Decisions,
        *,
        linear_from: int | None = None,
        vjp_of_jvp: VjpOfJvp | None = None,
        unbatched: TorchFn | None = None,
        batch_of: tuple[TorchFn, int, Dims] | None = None,
    ) -> None:
        self.flat_function = flat_function
        """The function that torch differentiates and batches."""
        self.depth = depth
        """How many more times it may be differentiated."""
        self.decisions = decisions
        self.linear_from = linear_from
        """The first of the operands that it is linear in, if it is a linear map."""
        self.is_derivative = linear_from is not None
        self.vjp_of_jvp = vjp_of_jvp
        """Its pullback, if it is a pushforward."""
        self.unbatched = unbatched
        """The function of one example, if it is a batch, or a batch of batches."""
        self.batch_of = batch_of
        """If it is a batch: the function of one of its examples, their number, and which operands have the axis."""
        self.memo = Memo()
        """The functions that were derived from it."""


def rules_of(fn: TorchFn) -> FunctionRules:
    """The rules of a function that can be differentiated."""
    if not isinstance(fn.rules, FunctionRules):
        raise TypeError(f"{fn} has {type(fn.rules).__name__}, not FunctionRules.")
    return fn.rules


def axes_of_batch(fn: TorchFn) -> tuple[TorchFn, BatchAxes]:
    """What a function is a batch of, and along which axes; itself and no axes if it is no batch."""
    axes = NO_AXES
    while (batch := rules_of(fn).batch_of) is not None:
        fn, size, dims = batch
        axes = BatchAxes((*axes, BatchAxis(size, dims)))
    return fn, axes
