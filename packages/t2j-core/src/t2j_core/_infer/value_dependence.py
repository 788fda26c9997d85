"""Errors for outputs that depend on values: which operands decide, and what to do about it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import torch

from .._base.errors import DataDependentShapeError, OutputError, describe
from .._base.text import listed
from .._signature.signature import Outputs, named_values
from .apart import apart
from .call import Call
from .fixed_shapes import WatchShapes, fixed_shapes, may_be_numbers
from .made_up import Make, Values
from .read_outputs import one_run

_MOST_TRIED = 8
_MOST_LISTED = 6


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that succeeded: its outputs, and how to repeat it."""

    outputs: Outputs
    make: Make
    device: str

    @classmethod
    def of(cls, call: Call, make: Make, device: str) -> Run:
        """Run a function on values."""
        return cls(one_run(call, [tensor.to(device) for tensor in make()]), make, device)


def check_alike(call: Call, first: Run, last: Run) -> None:
    """Raise `DataDependentShapeError` or `OutputError` if two runs on different values have different outputs."""
    one, other = first.outputs, last.outputs
    if one.leaves != other.leaves:
        raise DataDependentShapeError(_different_avals(call, first, last))
    if one.tree != other.tree:
        raise OutputError(_different_trees(call))
    if one.statics != other.statics:
        raise OutputError(_different_constants(call, one))


def _different_avals(call: Call, first: Run, last: Run) -> str:
    found = _deciding(call, first, last) or range(len(call.operands))
    paths, operands = call.call_tree.paths(), [call.operands[i] for i in found]
    shapes, others = ([leaf.shape for leaf in run.outputs.leaves] for run in (first, last))
    what, remedy = ("shapes", _fixed_shapes(call, last, found)) if shapes != others else ("dtypes", _ONE_DTYPE)
    named = named_values([paths[i] for i in found], operands)
    return describe(
        f"The output {what} of {call.name} depend on the values of its inputs ({named}).",
        expected=f"{what} that follow from the input {what}, which is all JAX knows when it traces",
        got=f"({_avals(first.outputs)}) for one input, ({_avals(last.outputs)}) for another",
        remedy=remedy,
    )


_ONE_DTYPE = "Convert the results to one dtype inside the function: `result.to(x.dtype)`."


def _deciding(call: Call, first: Run, last: Run) -> list[int]:
    """The operands which alone make the difference between two runs. Integers are tried first."""
    order = sorted(range(len(call.operands)), key=lambda i: (call.operands[i].is_inexact, i))
    return sorted(i for i in order[:_MOST_TRIED] if _decides(i, call, first, last))


def _decides(index: int, call: Call, first: Run, last: Run) -> bool:
    def mixed() -> Values:
        made, other = first.make(), last.make()
        return [*made[:index], other[index], *made[index + 1 :]]

    try:
        with apart(call.name):
            return Run.of(call, mixed, first.device).outputs.leaves != first.outputs.leaves
    except Exception:  # values of two runs together may be invalid input
        return False


def _fixed_shapes(call: Call, run: Run, found: Sequence[int]) -> str:
    """What to do so that shapes do not depend on the values of these operands. It is tried before it is advised."""
    paths, operands = call.call_tree.paths(), [call.operands[i] for i in found]
    paths, watch = [paths[i] for i in found], WatchShapes()
    _repeat(call, run, watch)
    if watch.advice is not None:
        return watch.advice
    if not may_be_numbers(operands):
        return fixed_shapes(paths, operands)
    error = _repeat(call, run, as_numbers=found)
    are_numbers = all(leaf.shape == () for leaf in operands)
    asks = isinstance(error, AttributeError) and (are_numbers or error.name in ("item", "tolist", "numpy"))
    remedy = fixed_shapes(paths, operands, takes_numbers=error is None or asks)
    return f"{remedy} Inside the function they are then numbers: `n`, not `n.item()`." if asks else remedy


def _repeat(call: Call, run: Run, watch: WatchShapes | None = None, as_numbers: Sequence[int] = ()) -> Exception | None:
    """Repeat a run, with Python numbers in the place of some operands: the exception that it raises."""

    def again(*_args: object, **_kwargs: object) -> object:
        data = [_number(t) if i in as_numbers else t.to(run.device) for i, t in enumerate(run.make())]
        args, kwargs = call.call_tree.merger()(data)
        with watch or contextlib.nullcontext():
            return call.fn(*args, **kwargs)

    try:
        with apart(call.name):
            Run.of(call.with_function(again), run.make, run.device)
    except Exception as error:
        return error.with_traceback(None)  # the traceback refers to this frame
    return None


def _number(tensor: torch.Tensor) -> object:
    return tuple(tensor.tolist()) if tensor.ndim else tensor.item()


def _avals(outputs: Outputs) -> str:
    return listed(outputs.leaves, _MOST_LISTED)


def _different_trees(call: Call) -> str:
    return describe(
        f"The tree that {call.name} returns depends on the values of its inputs ({call.named_avals()}).",
        expected="the same tuples, lists and dicts, with the same keys, for every input of a signature",
        got="a different tree for another input",
        remedy="Return the same tree for every input, with `torch.where` to choose between values.",
    )


def _different_constants(call: Call, outputs: Outputs) -> str:
    kinds = sorted({static.kind.__name__ for static in outputs.statics if static is not None})
    return describe(
        f"{call.name} returns a constant that depends on the values of its inputs ({call.named_avals()}).",
        expected="tensors, and constants that are the same for every input of a signature",
        got=f"another {' or '.join(kinds)} for another input",
        remedy="Return values that change from call to call as tensors: `x.sum()` instead of `x.sum().item()`.",
    )
