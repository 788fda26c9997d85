"""Ways through an autograd graph, followed in the same graph and in another one."""

from __future__ import annotations

import torch
from t2j_core import _compat
from t2j_core._run.backward_hooks import modes_at_nodes
from t2j_core._run.backward_nodes import nodes_at, ways_to


def leaf():
    return torch.ones(3, requires_grad=True)


def diamond(x, y):
    """Two results, and the nodes between them and the operands."""
    s = x.sin()
    p = s * y
    return p, (s + p.cos())


def every_node(roots):
    found = list(roots)
    for node in found:
        found += [after for after, _ in node.next_functions if after is not None and after not in found]
    return found


def test_a_way_leads_to_its_node():
    roots = [t.grad_fn for t in diamond(leaf(), leaf())]
    nodes = every_node(roots)
    ways = ways_to(nodes, roots)
    assert set(ways) == set(nodes)
    assert ways[roots[0]] == (0,)
    for order in (sorted(ways, key=ways.__getitem__), nodes):
        assert nodes_at([ways[node] for node in order], roots) == list(order)


def test_a_way_leads_to_the_same_node_of_the_same_graph_made_again():
    roots, again = ([t.grad_fn for t in diamond(leaf(), leaf())] for _ in range(2))
    ways = ways_to(every_node(roots), roots)
    for node, other in zip(ways, nodes_at(list(ways.values()), again), strict=True):
        assert other.name() == node.name()
        assert other is not node


def test_there_is_no_way_to_a_node_of_another_graph():
    a, b = leaf().sin().grad_fn, leaf().sin().grad_fn
    assert ways_to([a, b], [a]) == {a: (0,)}
    assert ways_to([a], []) == {}


def test_a_way_that_ends_early_leads_nowhere():
    x = leaf()
    root = (x.sin() * torch.ones(3)).grad_fn  # its second edge is empty
    ends = [(1,), (0, 2), (0, 1), (0, 1, 0), (0, 0, 0, 0), (0, 0, 1), (0, 0, 0, 0, 0)]
    assert nodes_at(ends, [root]) == [None] * len(ends)
    assert nodes_at([(0,)], []) == [None]
    mixed = nodes_at([(0, 1, 0), (0, 0)], [root])
    assert mixed == [None, root.next_functions[0][0]]


def test_a_long_chain():
    t = leaf()
    for _ in range(5000):
        t = t.sin()
    roots = [t.grad_fn]
    last = every_node(roots)[-1]
    (way,) = ways_to([last], roots).values()
    assert len(way) == 5001
    assert nodes_at([way], roots) == [last]


class Counted(_compat.DispatchMode):
    count = 0

    def handle(self, func, args, kwargs):
        self.count += 1
        return self.operate(func, args, kwargs)


def test_a_mode_is_on_for_its_node_and_within_the_context_alone():
    x, mode = leaf(), Counted()
    y = (x.exp() * x).sum()
    ((product, _),) = y.grad_fn.next_functions
    with modes_at_nodes({product: mode}):
        torch.autograd.grad(y, x, retain_graph=True)
    assert mode.count == 2  # the gradients of both factors
    torch.autograd.grad(y, x)
    assert mode.count == 2
