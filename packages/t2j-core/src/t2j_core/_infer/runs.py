"""Inference by runs on data, enough of them to show whether the outputs depend on values."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

import torch

from .. import _compat
from .._base.errors import T2jError
from .._signature.signature import Outputs, has_empty
from .allowance import Allowance, OverdrawnError
from .apart import apart
from .call import Call
from .draws import Draws, WatchDraws, generator_states
from .failures import FailureKind, values_matter
from .made_up import Examples, Make, enough, values
from .made_up_further import further
from .notes import note_inference, note_missing_width
from .numbers_in_code import numbers_in_code
from .unkeyed import is_random
from .value_dependence import Run, check_alike

_USELESS = 4  # after this many runs that fail in the same way, one on real data would fail too


class Runs:
    """Runs of a function on different values: those that succeeded, and the exceptions of the others."""

    def __init__(self, call: Call, *, numbers: Sequence[float], notes_random: bool) -> None:
        self._call = call
        self._numbers = dict.fromkeys(numbers)  # which the function may compare values with
        self._notes_random = notes_random
        self._succeeded: list[Run] = []
        self._drew: Run | None = None  # the last one that drew random numbers
        self._failures: list[Exception] = []

    def run(self, examples: Examples, without_data: FailureKind | None) -> None:
        """Run on examples and made-up values, until it is clear whether shapes depend on values."""
        allowance = Allowance()
        for device in _devices():
            for count, make in enumerate(values(self._call.operands, examples), 1):
                self._run_once(device, make)
                if self._is_settled() or (count == _USELESS and not self._may_work(without_data)):
                    break
            if self._may_work(without_data) and not self._is_decided():
                self._run_further(device, allowance)
            if self._succeeded or self._is_settled():
                return

    def agrees(self, outputs: Outputs, examples: Examples) -> bool | None:
        """Whether a run on data returns `outputs` too; None if each of a few raises."""
        for device in _devices():
            for make in itertools.islice(values(self._call.operands, examples), _USELESS):
                self._run_once(device, make)
                if self._succeeded:
                    return self._succeeded[0].outputs.is_alike(outputs)
        self.forget_failures()
        return None

    def works_on(self, examples: Examples) -> bool:
        """Whether the function runs on the examples."""
        for device in _devices():
            self._run_once(device, next(values(self._call.operands, examples)))
        self.forget_failures()
        return bool(self._succeeded)

    def _run_further(self, device: str, allowance: Allowance) -> None:
        for make in further(self._call.operands, self._numbers):
            if self._is_decided() or allowance.is_used_up:
                return
            with contextlib.suppress(OverdrawnError):
                self._run_once(device, make, allowance)

    def forget_failures(self) -> None:
        """Drop the exceptions. Their tracebacks refer to frames that refer to this object."""
        self._failures.clear()

    def _run_once(self, device: str, make: Make, allowance: Allowance | None = None) -> None:
        try:
            with apart(self._call.name), allowance or contextlib.nullcontext():  # `apart` first: it takes modes off
                before = generator_states()
                self._succeeded.append(Run.of(self._call, make, device))
                if not all(map(torch.equal, before, generator_states())):
                    self._drew = self._succeeded[-1]
        except Exception as error:  # made-up values may be invalid input
            self._numbers.update(dict.fromkeys(numbers_in_code(error)))
            self._failures.append(error)

    def _is_random(self) -> bool:
        drew, call = self._drew, self._call
        if drew is None or not self._notes_random:
            return False

        def again(draws: Draws) -> None:
            watched = lambda *args, **kwargs: draws.returned(call.fn(*args, **kwargs))
            with WatchDraws(draws):
                Run.of(call.with_function(watched), drew.make, drew.device)

        return is_random(call.name, again)

    def _is_decided(self) -> bool:
        """Whether an error is found that further runs cannot change."""
        return self._differ() or bool(self._failures and isinstance(self._failures[-1], T2jError))

    def _is_settled(self) -> bool:
        count = enough(self._call.operands) if self._succeeded and not self._has_empty() else math.inf
        return len(self._succeeded) >= count or self._is_decided()

    def _is_doubtful(self) -> bool:
        """Whether XLA would drop a call that shows more: that there are elements, or that a constant changes."""
        return self._has_empty() or any(static is not None for static in self._succeeded[0].outputs.statics)

    def _has_empty(self) -> bool:
        """Whether results have no elements, as those of `x[x > 1000]` on most values."""
        return has_empty(self._succeeded[0].outputs.leaves, self._call.operands)

    def _differ(self) -> bool:
        return any(not run.outputs.is_alike(self._succeeded[0].outputs) for run in self._succeeded)

    def _may_work(self, without_data: FailureKind | None) -> bool:
        return bool(self._succeeded) or values_matter(without_data, self._failures)

    def outputs(self) -> Outputs:
        """The outputs that all runs have in common. Raises if runs differ."""
        first, last = self._succeeded[0], self._succeeded[-1]
        check_alike(self._call, first, last)
        return dataclasses.replace(first.outputs, is_doubtful=self._is_doubtful(), is_random=self._is_random())

    def failure(self, without_data: FailureKind | None) -> Exception | None:
        """The first exception of t2j, else the first one with notes; None if a run succeeded."""
        if self._succeeded:
            return None
        of_t2j = [error for error in self._failures if isinstance(error, T2jError)]
        if of_t2j:
            return of_t2j[0]
        failure, call, matter = self._failures[0], self._call, self._may_work(without_data)
        note_inference(failure, call.name, call.call_tree, call.operands, values_matter=matter)
        note_missing_width(failure)
        return failure


def infer_from_data(runs: Runs, examples: Examples, without_data: FailureKind | None) -> Outputs:
    """The outputs that runs on examples and made-up data have in common."""
    runs.run(examples, without_data)
    failure = runs.failure(without_data)
    try:
        if failure is not None:
            raise failure
        return runs.outputs()
    finally:
        runs.forget_failures()
        del failure  # its traceback refers to this frame


def _devices() -> Iterable[str]:
    return dict.fromkeys((str(_compat.torch_device()), "cpu"))  # kernels or weights may exist for the GPU alone
