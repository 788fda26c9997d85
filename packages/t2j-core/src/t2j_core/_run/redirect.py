"""`outputs="auto"`: the operation that produces an output writes into XLA's buffer, so that nothing is copied there.

The first call records, under a dispatch mode, which operation produced which output. Later calls replace exactly that
operation by one that writes into given memory. Wherever a call differs from the record, the ordinary result is
copied: values never differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch._ops import OpOverload

from .. import _compat
from .._signature.signature import Leaf
from .producers import Producer, Recorder, kinds
from .replacements import Write, replacement_of


class _Seconds(NamedTuple):
    """What it takes to redirect, and to copy. On a GPU the first three are of the host."""

    mode: float  # entering the dispatch mode
    operation: float  # passing one operation through it
    copy: float
    byte: float  # of a copy


# Measured on an AMD EPYC, to fresh memory, and on an H200 (`benchmarks/results/gpu.json`).
_SECONDS = {"cpu": _Seconds(9e-6, 2e-6, 0.0, 0.25e-9), "cuda": _Seconds(28e-6, 5e-6, 10e-6, 0.5e-12)}


class _Swap(NamedTuple):
    """An operation that writes into a result buffer from now on."""

    position: int  # how many operations run before it
    operation: OpOverload
    write: Write
    output: int
    arguments: list[Any]  # `kinds` of the arguments when it was recorded
    shape: tuple[int, ...]  # how the operation's result lies in the memory of the output, which may be a view of it
    strides: tuple[int, ...]


def _would_stop_compiler() -> bool:
    return _compat.dynamo_is_loaded() and not _compat.DispatchMode.compiler_works_inside


class _Redirector(_compat.DispatchMode):
    def __init__(self, plan: dict[int, _Swap], buffers: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.plan, self.buffers, self.count = plan, buffers, 0

    def handle(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        swap = self.plan.get(self.count)
        self.count += 1
        if swap is None or swap.operation is not func or swap.arguments != kinds(args, kwargs):
            return self.operate(func, args, kwargs)
        place = self.buffers[swap.output].as_strided(swap.shape, swap.strides)
        written = swap.write(args, kwargs, place)
        return self.operate(func, args, kwargs) if written is None else written


class Redirected:
    """A flat function `(*tensors, *buffers) -> tuple of tensors` that learns where its outputs come from."""

    def __init__(self, call: Callable[..., tuple[Any, ...]], outputs: Sequence[Leaf], minimum: int) -> None:
        self._call = call
        self._outputs = outputs
        self._minimum = minimum
        self.plan: dict[int, _Swap] | None = None
        self._obstacles: dict[int, str] = {}  # why an output is copied

    def give_up(self) -> None:
        """Copy from now on: the function keeps its results, which therefore need memory of their own."""
        self._copy_all("the function keeps its results")

    def _copy_all(self, obstacle: str) -> None:
        self.plan = {}
        self._obstacles.update(dict.fromkeys(range(len(self._outputs)), obstacle))

    def explain(self, output: int) -> str:
        """What happens to an output, and why."""
        if self.plan is None:
            return "copied, or written in place by torch: the first call decides"
        by = [str(swap.operation) for swap in self.plan.values() if swap.output == output]
        return (
            f"written in place by {by[0].removesuffix('.default')}"
            if by
            else f"copied ({self._obstacles.get(output, 'not a result')})"
        )

    def __call__(self, *operands: torch.Tensor) -> tuple[Any, ...]:
        count = len(operands) - len(self._outputs)
        tensors, buffers = operands[:count], operands[count:]
        if self.plan is None:
            return self._record(tensors)
        if not self.plan or _would_stop_compiler():
            return self._call(*tensors)
        with _Redirector(self.plan, buffers):
            return self._call(*tensors)

    def _record(self, tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        if _would_stop_compiler():
            self._copy_all("this torch cannot look into a function while its compiler is in use")
            return self._call(*tensors)
        with Recorder() as recorder:
            results = self._call(*tensors)
        seconds = _SECONDS.get(tensors[0].device.type if tensors else "cpu", _SECONDS["cpu"])
        self._decide(recorder, results, seconds)
        return results

    def _decide(self, recorder: Recorder, results: Sequence[Any], seconds: _Seconds) -> None:
        """Make the plan: replace what produced the results of a recorded call, if that costs less than copies."""
        plan = {}
        saved = 0.0
        obstacles = dict.fromkeys(range(len(self._outputs)), f"below {self._minimum} bytes")
        for index, (result, leaf) in enumerate(zip(results, self._outputs, strict=False)):
            if leaf.nbytes < self._minimum:
                continue
            found = _swap(index, result, leaf, recorder.producer_of(result))
            if isinstance(found, str):
                obstacles[index] = found
                continue
            plan[found.position] = found
            saved += seconds.copy + leaf.nbytes * seconds.byte
            obstacles[index] = "it shares its memory with another output"  # shown if another one takes its place
        worth_it = saved > seconds.mode + recorder.count * seconds.operation
        if not worth_it:
            too_expensive = f"looking for what writes it among {recorder.count} operations costs more than the copy"
            obstacles.update((swap.output, too_expensive) for swap in plan.values())
        self._obstacles = obstacles
        self.plan = plan if worth_it else {}


def _swap(index: int, result: torch.Tensor, leaf: Leaf, producer: Producer | None) -> _Swap | str:
    """How the producer of a result can write into the buffer of the output; or why it cannot."""
    if producer is None:
        return "its memory is not new, or not all of an operation's"
    write = replacement_of(producer.operation, producer.arguments)
    if write is None:
        return f"{producer.operation} cannot write into given memory"
    has_same_dtype = result.dtype == producer.dtype == leaf.torch_dtype
    if not result.is_contiguous() or result.numel() != producer.numel or not has_same_dtype:
        return f"its layout in memory is not the one that {producer.operation} wrote"
    return _Swap(
        producer.position,
        producer.operation,
        write,
        index,
        producer.arguments,
        producer.shape,
        producer.strides,
    )
