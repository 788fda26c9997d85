"""How the outputs of a function are inferred: by one run without data; if that fails, by runs on data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from .._signature.call_tree import CallTree
from .._signature.signature import Leaf, Outputs, has_empty
from .call import Call
from .made_up import Examples
from .runs import Runs, infer_from_data
from .without_data import MANY_BYTES, Obstacles, infer_without_data


def infer_outputs(
    fn: Callable[..., Any],
    name: str,
    call_tree: CallTree,
    operands: Sequence[Leaf],
    examples: Examples = (),
    *,
    notes_random: bool = False,
) -> Outputs:
    """Run the function without data, once, and describe its outputs; if that fails, run it on data.

    The data are the examples, if there are any, and made-up values.

    If `notes_random`, a function that draws random numbers is run once more, to find out whether it always does.
    Raises `DataDependentShapeError` if a shape depends on values, and the function's own exception if it raises.
    """
    call, obstacles = Call(fn, name, call_tree, operands), Obstacles()
    outputs = infer_without_data(call, obstacles, notes_random=notes_random)
    if outputs is not None and not _is_to_be_confirmed(outputs, operands):
        return outputs
    runs = Runs(call, numbers=obstacles.numbers, notes_random=notes_random)
    if outputs is not None:
        agrees = None if call.nbytes >= MANY_BYTES else runs.agrees(outputs, examples)
        if agrees is not False:
            return dataclasses.replace(outputs, is_doubtful=agrees is None)
        obstacles.text = " (a run on data returns something else than one without)"
    outputs = infer_from_data(runs, examples, obstacles.failure)
    on = "examples and made-up data" if any(example is not None for example in examples) else "made-up data"
    return dataclasses.replace(outputs, origin=f"inferred by runs on {on}{obstacles.text}")


def works_on(
    fn: Callable[..., Any], name: str, call_tree: CallTree, operands: Sequence[Leaf], examples: Examples
) -> bool:
    """Whether the function runs on the examples."""
    return Runs(Call(fn, name, call_tree, operands), numbers=(), notes_random=False).works_on(examples)


def _is_to_be_confirmed(outputs: Outputs, operands: Sequence[Leaf]) -> bool:
    """Whether outputs from a run without data are confirmed by a run on data.

    No call would show that results without elements are wrong, because XLA drops the call. A constant may depend on
    where the function ran: `x.is_meta`, `x.device`.
    """
    return has_empty(outputs.leaves, operands) or any(static is not None for static in outputs.statics)
