"""Environment switches, read once and checked."""

from __future__ import annotations

import os


def _half_of_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return 4 << 30


def _bytes(name: str) -> int:
    text = os.environ.get(name, "")
    if not text:
        return _half_of_memory()
    if not text.isdecimal():
        raise ValueError(f"The environment variable {name} must be a non-negative integer.\n  Got: {text!r}")
    return int(text)


residual_bytes = _bytes("T2J_RESIDUAL_BYTES")
"""T2J_RESIDUAL_BYTES: how many bytes kept autograd graphs may hold, in all; half of the memory unless set."""
