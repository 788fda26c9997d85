"""Nodes of an autograd graph that a recorded backward ran, found again in the graphs of later calls."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch.autograd.graph import Node

Way = tuple[int, ...]
"""Which root a way begins at, then which edge leads on from each node."""


class _Step(NamedTuple):
    before: _Step | None
    edge: int

    def way(self) -> Way:
        edges = []
        step: _Step | None = self
        while step is not None:
            edges.append(step.edge)
            step = step.before
        return tuple(reversed(edges))


def ways_to(wanted: Iterable[Node], roots: Sequence[Node]) -> dict[Node, Way]:
    """A shortest way to each of the wanted nodes that the roots lead to."""
    missing, seen, found = set(wanted), set[Node](), dict[Node, Way]()
    queue = collections.deque((root, _Step(None, k)) for k, root in enumerate(roots))
    while queue and missing:
        node, step = queue.popleft()
        if node in seen:
            continue
        seen.add(node)
        if node in missing:
            missing.remove(node)
            found[node] = step.way()
        edges = enumerate(node.next_functions)
        queue += [(after[0], _Step(step, k)) for k, after in edges if after[0] is not None]
    return found


def nodes_at(ways: Sequence[Way], roots: Sequence[Node]) -> list[Node | None]:
    """The nodes that the ways lead to, perhaps in another graph than that of `ways_to`; None where one ends early.

    It is quickest if the ways are sorted.
    """
    found: list[Node | None] = []
    passed: list[Node | None] = []  # by the way before
    for before, way in itertools.pairwise([(), *ways]):
        del passed[_common(before, way) :]
        for k in way[len(passed) :]:
            passed.append(_after(passed[-1], k) if passed else (roots[k] if k < len(roots) else None))
        found.append(passed[-1])
    return found


def _common(a: Way, b: Way) -> int:
    return next((n for n, (i, j) in enumerate(zip(a, b, strict=False)) if i != j), min(len(a), len(b)))


def _after(node: Node | None, k: int) -> Node | None:
    if node is None or k >= len(edges := node.next_functions):
        return None
    return edges[k][0]
