"""What a call does around the backwards of autograd graphs that run in it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch.autograd.graph import GradientEdge, Node

from .. import _compat

Listener = Callable[[Sequence[Node]], contextlib.AbstractContextManager[object]]
"""Takes the nodes where a backward begins, and returns the context that it runs in."""


class _Thread(threading.local):
    listener: Listener | None = None


_this_thread = _Thread()
_NO_CONTEXT = contextlib.nullcontext()


def around_backward(edges: Sequence[GradientEdge]) -> contextlib.AbstractContextManager[object]:
    """The context for a backward that begins at `edges`. In it the call on this thread may redirect operations."""
    listener = _this_thread.listener
    return _NO_CONTEXT if listener is None else listener([edge.node for edge in edges])


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have `around_backward` ask `listener` on this thread."""
    before, _this_thread.listener = _this_thread.listener, listener
    try:
        yield
    finally:
        _this_thread.listener = before


@contextlib.contextmanager
def modes_at_nodes(modes: Mapping[Node, _compat.DispatchMode]) -> Iterator[None]:
    """Have each dispatch mode on while its node runs, on the thread where it runs.

    If the node raises, torch restores the stack of modes of that thread (`Engine::thread_main`).
    """
    handles = []
    for node, mode in modes.items():
        handles += [node.register_prehook(_entering(mode)), node.register_hook(_leaving(mode))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _entering(mode: _compat.DispatchMode) -> Callable[..., None]:
    return lambda _: mode.turn_on()


def _leaving(mode: _compat.DispatchMode) -> Callable[..., None]:
    return lambda *_: mode.turn_off()
