"""Which module calls torch, as seen from a function mode."""

from __future__ import annotations

import sys
from types import FrameType

_PACKAGE = __name__.partition(".")[0] + "."
_OF_MODES = ("__torch_function__", "run_function")  # the second is that of `WrapperWrites`


def calling_module(depth: int) -> str:
    """The module whose code calls torch, for a mode whose `__torch_function__` is `depth` frames above the caller.

    Modes nest: frames of other modes of this package are skipped.
    """
    frame = sys._getframe(depth + 1)
    while frame.f_code.co_name in _OF_MODES and _name(frame).startswith(_PACKAGE) and frame.f_back:
        frame = frame.f_back
    return _name(frame)


def _name(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
