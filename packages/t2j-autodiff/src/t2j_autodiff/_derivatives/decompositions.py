"""Second derivatives of attention and normalisation through elementary operations.

Fused attention has no second derivatives (`_compat.attention`), and those of normalisation are wrong
(`_workarounds.norms`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from t2j_core.extend import FlatFunction, turns

from .. import _compat
from .._base.decisions import Decisions
from .._workarounds.norms import DecomposedNorms

one_at_a_time = turns
"""Torch's level of forward mode and its choice of attention kernel are those of the process, so threads take turns."""


class _OfThread(threading.local):
    decomposes: Decisions | None = None  # those of the function whose derivative runs with decompositions


_of_thread = _OfThread()


@contextlib.contextmanager
def _active(norms: DecomposedNorms | None) -> Iterator[None]:
    if norms is None:
        yield
        return
    with _compat.as_written(), norms:
        yield


def with_decompositions(f: FlatFunction, decisions: Decisions) -> FlatFunction:
    """`f`, a second derivative, with attention and normalisation in elementary operations.

    A mode costs as much per operation as a small operation does. So where all runs call the same operations, the first
    one shows whether there are norms. Where derivatives contain each other, the outermost decomposes for all.
    """

    def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if _of_thread.decomposes is decisions:
            return f(*x)
        norms = None if decisions.has_norms is False else DecomposedNorms()
        with one_at_a_time, _compat.math_attention(), _active(norms):
            outer, _of_thread.decomposes = _of_thread.decomposes, decisions
            try:
                y = f(*x)
            finally:
                _of_thread.decomposes = outer
        if norms is not None and decisions.has_norms is None and decisions.runs_same_operations:
            decisions.has_norms = norms.has_met_one
        return y

    return run
