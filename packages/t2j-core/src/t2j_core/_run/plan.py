"""Which operations of a call write its outputs: what a recorded call has shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch._ops import OpOverload

from .._signature.signature import Leaf
from .backward_nodes import Way, ways_to
from .producers import Recorder
from .swaps import Swap, Swaps, by_operation, swap_of


class _Seconds(NamedTuple):
    """What it takes to redirect, and to copy. On a GPU the first two are of the host."""

    mode: float  # entering the dispatch mode
    step: float  # passing one operation through it, or going from one node of a graph to the next
    copy: float
    byte: float  # of a copy


# Measured on an AMD EPYC, to fresh memory, and on an H200 (`benchmarks/results/gpu.json`).
_SECONDS = {"cpu": _Seconds(9e-6, 2e-6, 0.0, 0.25e-9), "cuda": _Seconds(28e-6, 5e-6, 10e-6, 0.5e-12)}

_Group = dict[tuple[OpOverload, int], Swap]


class Plan(NamedTuple):
    """What to replace in later calls."""

    everywhere: Swaps
    """Operations of the whole call."""
    at_nodes: Mapping[Way, Swaps]
    """Operations of nodes of its backward, by the ways to them in their order."""
    writers: Mapping[int, OpOverload]
    """By the output."""
    obstacles: Mapping[int, str]
    """Why the other outputs are copied."""

    def explain(self, output: int) -> str:
        """What happens to an output, and why."""
        if output in self.writers:
            return f"written in place by {str(self.writers[output]).removesuffix('.default')}"
        return f"copied ({self.obstacles.get(output, 'not a result')})"


def nothing_in_place(outputs: int, obstacle: str) -> Plan:
    """The plan to copy all outputs."""
    return Plan({}, {}, {}, dict.fromkeys(range(outputs), obstacle))


def plan_of(
    recorder: Recorder, results: Sequence[torch.Tensor], outputs: Sequence[Leaf], minimum: int, device: str
) -> Plan:
    """Replace what produced the results of a recorded call, if that costs less than copies."""
    large = [i for i, leaf in enumerate(outputs[: len(results)]) if leaf.nbytes >= minimum]
    obstacles = {i: f"below {minimum:,} bytes" for i in range(len(outputs)) if i not in large}
    groups: dict[Way | None, _Group] = {}
    for i, (way, swap) in _swaps(recorder, results, outputs, large).items():
        if isinstance(swap, str):
            obstacles[i] = swap
        else:
            groups.setdefault(way, {})[swap.operation, swap.run] = swap
            obstacles[i] = "it shares its memory with another output"  # shown if another one takes its place
    for way, group in [*groups.items()]:
        too_expensive = _is_too_expensive(way, group, recorder, outputs, _SECONDS.get(device, _SECONDS["cpu"]))
        if too_expensive is not None:
            del groups[way]
            obstacles.update((swap.output, too_expensive) for swap in group.values())
    writers = {swap.output: swap.operation for group in groups.values() for swap in group.values()}
    everywhere = by_operation(groups.pop(None, {}).values())
    at_nodes = {way: by_operation(groups[way].values()) for way in sorted(filter(None, groups))}
    return Plan(everywhere, at_nodes, writers, obstacles)


def _swaps(
    recorder: Recorder, results: Sequence[torch.Tensor], outputs: Sequence[Leaf], large: Sequence[int]
) -> dict[int, tuple[Way | None, Swap | str]]:
    """How each large output can be written or why it cannot, and the way to the node of the backward that does it."""
    producers = {i: recorder.producer_of(results[i]) for i in large}
    nodes = {i: producer.node for i, producer in producers.items() if producer and producer.node is not None}
    ways = ways_to(nodes.values(), recorder.roots)
    found: dict[int, tuple[Way | None, Swap | str]] = {}
    for i, producer in producers.items():
        way = ways.get(nodes[i]) if i in nodes else None
        found[i] = way, swap_of(producer, results[i], i, outputs[i], in_node=way is not None)
    return found


def _is_too_expensive(
    way: Way | None, group: _Group, recorder: Recorder, outputs: Sequence[Leaf], seconds: _Seconds
) -> str | None:
    """Why a group is better copied, if it is."""
    count, what = (recorder.count, "operations") if way is None else (len(way), "nodes of the backward")
    saved = sum(seconds.copy + outputs[swap.output].nbytes * seconds.byte for swap in group.values())
    if saved > seconds.mode + count * seconds.step:
        return None
    return f"looking for what writes it among {count} {what} costs more than the copy"
