"""Second derivatives of attention and normalisation through elementary operations.

Fused attention has no second derivatives (`_compat.attention`), and normalisation wrong ones (`_workarounds.norms`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from t2j_core.extend import FlatFunction, turns

from .. import _compat
from .._base.decisions import Shared
from .._workarounds.norms import DecomposedNorms

one_at_a_time = turns
"""Torch's level of forward mode and its choice of attention kernel are those of the process, so threads take turns."""


class _Inside(threading.local):
    of: Shared | None = None  # the function whose derivative runs with decompositions on this thread


_inside = _Inside()


@contextlib.contextmanager
def _active(norms: DecomposedNorms | None) -> Iterator[None]:
    if norms is None:
        yield
        return
    with _compat.as_written(), norms:
        yield


def with_decompositions(f: FlatFunction, shared: Shared) -> FlatFunction:
    """`f`, a second derivative, with attention and normalisation in elementary operations.

    A mode costs as much per operation as a small operation does. So where all runs go the same way, the first one
    tells whether there are norms at all. Derivatives contain each other, and the outermost does this for all.
    """

    def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if _inside.of is shared:
            return f(*x)
        norms = None if shared.normalises is False else DecomposedNorms()
        with one_at_a_time, _compat.math_attention(), _active(norms):
            outer, _inside.of = _inside.of, shared
            try:
                y = f(*x)
            finally:
                _inside.of = outer
        if norms is not None and shared.normalises is None and shared.goes_one_way:
            shared.normalises = norms.has_met_one
        return y

    return run
