"""Whose code calls torch under a function mode."""

from __future__ import annotations

import sys
from types import FrameType

_PACKAGE = __name__.partition(".")[0] + "."


def calling_module(depth: int) -> str:
    """The module whose code calls torch. The `__torch_function__` of a mode that asks is `depth` frames up.

    Other modes of this package may lie between.
    """
    frame = sys._getframe(depth + 1)
    while frame.f_code.co_name == "__torch_function__" and _name(frame).startswith(_PACKAGE) and frame.f_back:
        frame = frame.f_back
    return _name(frame)


def _name(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
