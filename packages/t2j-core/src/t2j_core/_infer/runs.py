"""Runs of a function on data, which tell whether shapes depend on values."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from .. import _compat
from .._base.dtypes import note_missing_width
from .._base.errors import DataDependentShapeError, OutputError, T2jError, describe, listed
from .._signature.call_tree import CallTree
from .._signature.signature import Leaf, Outputs, has_empty, named_avals, named_values
from .advice import Kind, note_inference, values_matter
from .allowance import Allowance, OverdrawnError
from .apart import apart
from .fixed_shapes import fixed_shapes, may_be_numbers
from .further import further
from .hints import numbers_beside
from .made_up import Examples, Values, enough, values
from .randomness import Draws, Watch, generator_states
from .read_outputs import one_run
from .shaped_by_values import ShapedByValues
from .unkeyed import is_random


class Runs:
    """Runs of a function on different values: enough of them to tell whether shapes depend on values."""

    def __init__(
        self,
        call: Callable[..., Any],
        name: str,
        call_tree: CallTree,
        operands: Sequence[Leaf],
        *,
        numbers: Sequence[float],
        notes_random: bool,
    ) -> None:
        self._call, self._name, self._call_tree, self._operands = call, name, call_tree, operands
        self._numbers = dict.fromkeys(numbers)  # which the function may compare values with
        self._notes_random = notes_random
        self._drew_on: _On | None = None  # values of a run that drew random numbers
        self._answers: list[Outputs] = []
        self._ran_on: list[_On] = []  # for each answer
        self._failures: list[Exception] = []

    def run(self, examples: Examples, without_data: Kind | None) -> None:
        """Run on examples and made-up values, until it is clear whether shapes depend on them."""
        allowance = Allowance()
        for device in _devices():
            for count, make in enumerate(values(self._operands, examples), 1):
                self._run_once(device, make)
                if self._is_settled() or (count == _IN_VAIN and not self._may_work(without_data)):
                    break
            if self._may_work(without_data) and not self._is_decided():
                self._run_further(device, allowance)
            if self._answers or self._is_settled():
                return

    def agrees(self, outputs: Outputs, examples: Examples) -> bool | None:
        """Whether a run on data returns `outputs` too; None where each of a few raises."""
        for device in _devices():
            for make in itertools.islice(values(self._operands, examples), _IN_VAIN):
                self._run_once(device, make)
                if self._answers:
                    return _content(self._answers[0]) == _content(outputs)
        self.forget_failures()
        return None

    def works_on(self, examples: Examples) -> bool:
        """Whether the function runs on the examples."""
        for device in _devices():
            self._run_once(device, next(values(self._operands, examples)))
        self.forget_failures()
        return bool(self._answers)

    def _run_further(self, device: str, allowance: Allowance) -> None:
        for make in further(self._operands, self._numbers):
            if self._is_decided() or allowance.is_used_up:
                return
            with contextlib.suppress(OverdrawnError):
                self._run_once(device, make, allowance)

    def forget_failures(self) -> None:
        """Their tracebacks refer to frames that refer to this."""
        self._failures.clear()

    def _run_once(self, device: str, make: Callable[[], Values], allowance: Allowance | None = None) -> None:
        try:
            with apart(self._name), allowance or contextlib.nullcontext():  # in this order: `apart` takes modes off
                before = generator_states()
                self._answers.append(self._run(device, make))
                self._ran_on.append((make, device))
                if not all(map(torch.equal, before, generator_states())):
                    self._drew_on = make, device
        except Exception as error:  # not all values need be valid input
            self._numbers.update(dict.fromkeys(numbers_beside(error)))
            self._failures.append(error)

    def _run(self, device: str, make: Callable[[], Values], call: Callable[..., Any] | None = None) -> Outputs:
        return one_run(call or self._call, self._call_tree, [tensor.to(device) for tensor in make()])

    def _is_random(self) -> bool:
        if self._drew_on is None or not self._notes_random:
            return False
        make, device = self._drew_on

        def again(draws: Draws) -> None:
            watched = lambda *args, **kwargs: draws.returned(self._call(*args, **kwargs))
            with Watch(draws):
                self._run(device, make, watched)

        return is_random(self._name, again)

    def _is_decided(self) -> bool:
        """Whether an error is found that further runs cannot change."""
        return self._differ() or bool(self._failures and isinstance(self._failures[-1], T2jError))

    def _is_settled(self) -> bool:
        count = enough(self._operands) if self._answers and not self._has_empty() else math.inf
        return len(self._answers) >= count or self._is_decided()

    def _is_doubtful(self) -> bool:
        """Whether XLA would drop a call that would show more: elements, or that a constant is none."""
        return self._has_empty() or any(static is not None for static in self._answers[0].statics)

    def _has_empty(self) -> bool:
        """Whether only further values would show elements: `x[x > 1000]`."""
        return has_empty(self._answers[0].leaves, self._operands)

    def _differ(self) -> bool:
        return any(_content(answer) != _content(self._answers[0]) for answer in self._answers)

    def _may_work(self, without_data: Kind | None) -> bool:
        return bool(self._answers) or values_matter(without_data, self._failures)

    def outputs(self) -> Outputs:
        first, last = self._answers[0], self._answers[-1]
        if last.leaves != first.leaves:
            raise DataDependentShapeError(self._data_dependent(first, last))
        if last.tree != first.tree:
            raise OutputError(_changing_tree(self._name, self._call_tree, self._operands))
        if last.statics != first.statics:
            raise OutputError(_changing_constant(self._name, self._call_tree, self._operands, first))
        return dataclasses.replace(first, is_doubtful=self._is_doubtful(), is_random=self._is_random())

    def _data_dependent(self, first: Outputs, second: Outputs) -> str:
        paths, found = self._call_tree.paths(), self._deciding() or range(len(self._operands))
        paths, operands = [paths[i] for i in found], [self._operands[i] for i in found]
        is_of_shapes = [leaf.shape for leaf in first.leaves] != [leaf.shape for leaf in second.leaves]
        what, remedy = ("shapes", self._fixed_shapes(found)) if is_of_shapes else ("dtypes", _ONE_DTYPE)
        return describe(
            f"The output {what} of {self._name} depend on the values of its inputs ({named_values(paths, operands)}).",
            expected=f"{what} that follow from the input {what}, which is all JAX knows when it traces",
            got=f"({_avals(first)}) for one input, ({_avals(second)}) for another",
            remedy=remedy,
        )

    def _fixed_shapes(self, found: Sequence[int]) -> str:
        """What to do so that shapes do not depend on the values of these operands. It is tried before it is told."""
        paths, watch = self._call_tree.paths(), ShapedByValues()
        paths, operands = [paths[i] for i in found], [self._operands[i] for i in found]
        self._try(watch, ())
        if watch.advice is not None:
            return watch.advice
        if not may_be_numbers(operands):
            return fixed_shapes(paths, operands)
        error = self._try(contextlib.nullcontext(), found)
        is_one_each = all(leaf.shape == () for leaf in operands)
        asks = isinstance(error, AttributeError) and (is_one_each or error.name in ("item", "tolist", "numpy"))
        remedy = fixed_shapes(paths, operands, takes_numbers=error is None or asks)
        return f"{remedy} Inside of the function they are no tensors then: `n`, not `n.item()`." if asks else remedy

    def _try(self, context: contextlib.AbstractContextManager[Any], as_numbers: Sequence[int]) -> Exception | None:
        """Repeat the last run, with Python numbers in the place of some operands: the exception that it raises."""
        make, device = self._ran_on[-1]

        def again(*_args: Any, **_kwargs: Any) -> Any:
            data = [_number(t) if i in as_numbers else t.to(device) for i, t in enumerate(make())]
            args, kwargs = self._call_tree.merger()(data)
            with context:
                return self._call(*args, **kwargs)

        try:
            with apart(self._name):
                self._run(device, make, again)
        except Exception as error:
            return error.with_traceback(None)  # which refers to this
        return None

    def _deciding(self) -> list[int]:
        """The operands of which one alone decides between the first answer and the last, the likely ones first."""
        (make, device), (make_other, _) = self._ran_on[0], self._ran_on[-1]
        order = sorted(range(len(self._operands)), key=lambda i: (self._operands[i].is_inexact, i))
        return sorted(i for i in order[:_MOST_TRIED] if self._decides(i, make, make_other, device))

    def _decides(self, index: int, make: Callable[[], Values], make_other: Callable[[], Values], device: str) -> bool:
        def mixed() -> Values:
            made, other = make(), make_other()
            return [*made[:index], other[index], *made[index + 1 :]]

        try:
            with apart(self._name):
                return self._run(device, mixed).leaves != self._answers[0].leaves
        except Exception:  # what goes with one value need not go with another
            return False

    def failure(self, without_data: Kind | None) -> Exception | None:
        """The first exception, or that of t2j, with notes; None where a run succeeded."""
        if self._answers:
            return None
        of_t2j = [error for error in self._failures if isinstance(error, T2jError)]
        if of_t2j:
            return of_t2j[0]
        failure, matter = self._failures[0], self._may_work(without_data)
        note_inference(failure, self._name, self._call_tree, self._operands, values_matter=matter)
        note_missing_width(failure)
        return failure


def _devices() -> Iterable[str]:
    return dict.fromkeys((str(_compat.torch_device()), "cpu"))  # kernels and weights may be of a GPU alone


def _number(tensor: torch.Tensor) -> Any:
    return tuple(tensor.tolist()) if tensor.ndim else tensor.item()


def _content(outputs: Outputs) -> tuple[Any, ...]:
    return outputs.leaves, outputs.tree, outputs.statics


_On = tuple[Callable[[], Values], str]  # the values of a run, and its device
_MOST_TRIED = 8
_MOST_LISTED = 6
_IN_VAIN = 4  # runs that fail in the same way, as on real data


def infer_from_data(runs: Runs, examples: Examples, without_data: Kind | None) -> Outputs:
    """The outputs that runs on examples and made-up data have shown."""
    runs.run(examples, without_data)
    failure = runs.failure(without_data)
    try:
        if failure is not None:
            raise failure
        return runs.outputs()
    finally:
        runs.forget_failures()
        del failure  # its traceback holds this frame


def _avals(outputs: Outputs) -> str:
    return listed(outputs.leaves, _MOST_LISTED)


_ONE_DTYPE = "Convert the results to one dtype inside the function: `result.to(x.dtype)`."


def _changing_tree(name: str, call_tree: CallTree, operands: Sequence[Leaf]) -> str:
    return describe(
        f"The tree that {name} returns depends on the values of its inputs ({named_avals(call_tree, operands)}).",
        expected="the same tuples, lists and dicts, with the same keys, for every input of a signature",
        got="another tree for another input",
        remedy="Return the same tree for every input, with `torch.where` to choose between values.",
    )


def _changing_constant(name: str, call_tree: CallTree, operands: Sequence[Leaf], outputs: Outputs) -> str:
    kinds = sorted({static.kind.__name__ for static in outputs.statics if static is not None})
    return describe(
        f"{name} returns a constant that depends on the values of its inputs ({named_avals(call_tree, operands)}).",
        expected="tensors, and constants that are the same for every input of a signature",
        got=f"another {' or '.join(kinds)} for another input",
        remedy="Return values that change from call to call as tensors: `x.sum()` instead of `x.sum().item()`.",
    )
