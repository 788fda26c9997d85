"""Views that a traced forward saves, which the backward makes again: as arrays they would be copies."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from t2j_core.extend import is_view, placeholders
from torch.fx import GraphModule, Node

from .graphs import outputs_of, return_from


def save_what_views_are_of(forward: GraphModule, backward: GraphModule, n_results: int) -> None:
    """Let a forward save each tensor once, and what a view is of in its place, such as a weight for its transpose."""
    values = outputs_of(forward)
    results, saved = values[:n_results], values[n_results:]
    places = placeholders(backward)
    roots: dict[Node, Node] = {}  # what is saved now, and where the backward takes it
    for node, place in zip(saved, places, strict=False):
        root = _root(node, saved)
        if root not in roots:
            with backward.graph.inserting_before(places[0]):
                roots[root] = backward.graph.placeholder(f"saved_{len(roots)}")
            roots[root].meta["val"] = root.meta["val"]
        value = roots[root]
        with backward.graph.inserting_before(places[-1].next):
            for view in reversed([view for view in _chain(node) if view not in _chain(root)]):
                value = backward.graph.call_function(view.target, (value, *view.args[1:]), view.kwargs)  # type: ignore[arg-type]
                value.meta["val"] = view.meta["val"]
        place.replace_all_uses_with(value)
    for place in places[: len(saved)]:
        backward.graph.erase_node(place)
    return_from(forward, [*results, *roots])
    backward.recompile()


def _root(node: Node, saved: Collection[Node]) -> Node:
    """What to save in place of a node: what it is a view of, if that takes no more memory."""
    found = node
    for base in _bases(node):
        if base.op == "placeholder" or base in saved or _numel(base) <= _numel(node):
            found = base
    return found


def _chain(node: Node) -> list[Node]:
    """The views that lead to a node from what they are of, the node itself first."""
    return [view for view in (node, *_bases(node)) if is_view(view)]


def _bases(node: Node) -> Iterator[Node]:
    while is_view(node):
        base: Any = node.args[0]
        yield base
        node = base


def _numel(node: Node) -> int:
    return int(node.meta["val"].numel())
