"""Second derivatives in plain operations: fast attention kernels lack them, and normalisation gets them wrong."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from t2j_core.extend import as_written, turns

from .. import _compat
from .._base.decisions import Shared
from .._mends.norms import PlainNorms
from .reverse_mode import Flat

one_at_a_time = turns
"""Torch's forward mode is for one thread at a time, and its choice of attention kernel is global."""


class _Inside(threading.local):
    of: Shared | None = None  # the function whose derivative runs in plain operations on this thread


_inside = _Inside()


@contextlib.contextmanager
def _watched_by(norms: PlainNorms | None) -> Iterator[None]:
    if norms is None:
        yield
        return
    with as_written(), norms:
        yield


def in_plain_operations(f: Flat, shared: Shared) -> Flat:
    """`f`, a second derivative, in plain operations.

    A mode costs as much per operation as a small operation does. So norms are looked for in the first run alone where
    all runs go the same way. Derivatives contain each other, and the outermost does it for all.
    """

    def run(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if _inside.of is shared:
            return f(*x)
        norms = None if shared.normalises is False else PlainNorms()
        with one_at_a_time, _compat.math_attention(), _watched_by(norms):
            outer, _inside.of = _inside.of, shared
            try:
                y = f(*x)
            finally:
                _inside.of = outer
        if norms is not None and shared.normalises is None and shared.goes_one_way:
            shared.normalises = norms.has_met_one
        return y

    return run
