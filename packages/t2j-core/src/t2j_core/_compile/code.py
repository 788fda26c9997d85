"""`Code`: a traced graph that inductor has compiled, for one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from .. import _compat
from .._base.errors import ArgumentError, describe
from .._infer.rng import seeded_by
from .graphs import draws, drop_unused, may_draw, placeholders, take_references
from .results import write_into
from .source import Source
from .tracing import fake_tensors

Run = Callable[[list[Any]], object]


class Code:
    """A compiled graph. `run` takes a list of the operands that it uses, and of the result buffers."""

    def __init__(self, source: Source, graph: GraphModule, device: torch.device) -> None:
        count = len(source.operands)
        mode = next(node.meta["val"].fake_mode for node in placeholders(graph) if "val" in node.meta)
        write_into(graph, fake_tensors(source.results, device, mode))
        references = take_references(graph, mode)
        used = drop_unused(graph, 0 if source.keeps_operands else count)
        takes_key = source.has_key and may_draw(graph)
        self.used: tuple[int, ...] = tuple(range(count)) if source.keeps_operands else (*([0] * takes_key), *used)
        self.draws_without_key: bool = not source.has_key and draws(graph)
        graph.recompile()
        self.run: Run = _compat.compile_graph(graph)
        if references:
            self.run = with_references(source.name, self.run, references)
        if takes_key:
            self.run = with_seed(self.run, skips_key=not source.keeps_operands)


def with_seed(run: Run, *, skips_key: bool) -> Run:
    """`run`, while torch's generators are seeded from the first operand."""

    def seeded(tensors: list[Any]) -> None:
        with seeded_by(tensors[0]):
            run(tensors[1:] if skips_key else tensors)

    return seeded


def with_references(name: str, run: Run, references: Sequence[torch.Tensor]) -> Run:
    """`run` with the tensors that the function refers to as its last arguments, with the values that they have now."""
    expected = [_kind(t) for t in references]

    def referring(tensors: list[Any]) -> None:
        for t, kind in zip(references, expected, strict=True):
            if _kind(t) != kind:  # compiled code does not look
                raise _changed(name, kind, _kind(t))
        run([*tensors, *references])

    return referring


def _kind(t: torch.Tensor) -> tuple[Any, ...]:
    return t.shape, t.stride(), t.dtype, t.device


def _changed(name: str, expected: object, got: object) -> ArgumentError:
    return ArgumentError(
        describe(
            f"A tensor that {name} refers to has changed since `compile=True` has compiled the function.",
            expected=f"shape, strides, dtype and device {expected}",
            got=got,
            remedy="Pass the tensor as an argument.",
        )
    )
