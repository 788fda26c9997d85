"""`outputs="auto"`: the operation that produces an output writes into XLA's buffer, so that nothing is copied there.

The first call records, under a dispatch mode, which operation produced which output. Later calls replace exactly that
operation by one that writes into given memory. The mode is on during the whole call; for an operation of the backward
of a kept graph, only while its node runs. Wherever a call differs from the record, the ordinary result is copied:
values never differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd.graph import Node

from .. import _compat
from .._signature.signature import Leaf
from .backward_hooks import Listener, listening, modes_at_nodes
from .backward_nodes import Way, nodes_at
from .plan import Plan, nothing_in_place, plan_of
from .producers import Recorder
from .swaps import Redirector, Swaps


class Redirected:
    """A flat function `(*tensors, *buffers) -> tuple of tensors` that learns where its outputs come from."""

    def __init__(self, call: Callable[..., tuple[Any, ...]], outputs: Sequence[Leaf], minimum: int) -> None:
        self._call = call
        self._outputs = outputs
        self._minimum = minimum
        self.plan: Plan | None = None

    def give_up(self) -> None:
        """Copy from now on: the function keeps its results, which therefore need memory of their own."""
        self._copy_all("the function keeps its results")

    def _copy_all(self, obstacle: str) -> None:
        self.plan = nothing_in_place(len(self._outputs), obstacle)

    def explain(self, output: int) -> str:
        """What happens to an output, and why."""
        if self.plan is None:
            return "copied, or written in place by torch: the first call decides"
        return self.plan.explain(output)

    def __call__(self, *operands: torch.Tensor) -> tuple[Any, ...]:
        count = len(operands) - len(self._outputs)
        tensors, buffers = operands[:count], operands[count:]
        plan = self.plan
        if plan is None:
            return self._record(tensors)
        if not plan.writers or _would_stop_compiler():
            return self._call(*tensors)
        at_nodes = listening(_listener(plan.at_nodes, buffers)) if plan.at_nodes else contextlib.nullcontext()
        everywhere = Redirector(plan.everywhere, buffers) if plan.everywhere else contextlib.nullcontext()
        with at_nodes, everywhere:
            return self._call(*tensors)

    def _record(self, tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        if _would_stop_compiler():
            self._copy_all("this torch cannot look into a function while its compiler is in use")
            return self._call(*tensors)
        with Recorder() as recorder, listening(recorder.note_backward):
            results = self._call(*tensors)
        device = tensors[0].device.type if tensors else "cpu"
        self.plan = plan_of(recorder, results, self._outputs, self._minimum, device)
        return results


def _would_stop_compiler() -> bool:
    return _compat.dynamo_is_loaded() and not _compat.DispatchMode.compiler_works_inside


def _listener(at_nodes: Mapping[Way, Swaps], buffers: Sequence[torch.Tensor]) -> Listener:
    """What redirects the operations of a backward in the nodes at the ends of the ways."""
    modes = [Redirector(swaps, buffers) for swaps in at_nodes.values()]

    def around(roots: Sequence[Node]) -> contextlib.AbstractContextManager[object]:
        nodes = nodes_at(list(at_nodes), roots)
        return modes_at_nodes({node: mode for node, mode in zip(nodes, modes, strict=True) if node is not None})

    return around
