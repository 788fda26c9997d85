"""The pushforward by torch's forward mode."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .. import _compat
from .._workarounds.forward_mode_fixes import forward_mode_fixes
from .forward_level import in_forward_level
from .pushforward import Pushforward


class Run(NamedTuple):
    """A run in forward mode."""

    results: tuple[torch.Tensor, ...]
    tangents: tuple[torch.Tensor, ...]
    is_complete: bool  # every result has a tangent


def torch_jvp(pushforward: Pushforward) -> Run:
    """The results `pushforward.outs`, and their tangents."""
    moved, f = pushforward.moved, pushforward.restricted
    tangents = tuple(t.to(m.dtype) for t, m in zip(pushforward.tangents, moved, strict=True))
    have: list[bool] = []

    def run(*moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with forward_mode_fixes():
            y = f(*moved)
        have[:] = map(_compat.has_tangent, y)
        return y

    y, dy = in_forward_level(lambda: torch.func.jvp(run, moved, tangents))  # type: ignore[misc]
    # Under autocast, torch's norms of bfloat16 with a weight of float32 have tangents of float32 (torch 2.13).
    return Run(y, tuple(_compat.materialised(d).to(yi.dtype) for yi, d in zip(y, dy, strict=True)), all(have))
