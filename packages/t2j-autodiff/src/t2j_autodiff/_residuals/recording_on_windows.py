"""Running a function on windows, so that its autograd graph can be kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from t2j_core.extend import FlatFunction, modules_in_use

from .. import _compat
from .._batching.batch_axes import NO_AXES
from .kept_graph import KeptGraph
from .recording import Recording, edges_to
from .saved_tensors import note_writes
from .window_policy import WindowPolicy
from .windows import Windows


def record_on(
    windows: Windows, f: FlatFunction, x: Sequence[torch.Tensor], ins: Sequence[int], policy: WindowPolicy
) -> Recording:
    """Run `f` on windows that are open on the operands `x`, and close them."""
    graph = KeptGraph(NO_AXES, x[0].device, windows)
    before = _compat.nodes_made()
    try:
        with torch.enable_grad(), modules_in_use(until_the_end=False) as use:
            y = f(*windows.tensors)
            made = _compat.nodes_made() - before
    except BaseException:
        _note_writes(windows, x)
        windows.move_all(x)
        raise
    graph.out_edges = edges_to(y)
    results = tuple(windows.apart([t.detach() for t in y]))
    del y  # the windows may be among them
    windows.at_end = made, windows.owners()
    is_written = _note_writes(windows, x)
    windows.close()
    if is_written or policy.may_have_escaped(graph, windows):
        graph.free()
        policy.end(windows, x, is_usual=False)
    graph.leaves = {i: windows.tensors[i] for i in ins}
    return Recording(graph, results, "the backward runs code of a module" if use.is_kept else None)


def _note_writes(windows: Windows, x: Sequence[torch.Tensor]) -> bool:
    """Let the versions of operands tell whether the function has written into them."""
    written = windows.changed()
    note_writes(x, written)
    return bool(written)
