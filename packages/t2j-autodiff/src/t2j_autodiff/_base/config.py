"""Environment switches, read once and checked."""

from __future__ import annotations

import functools
import os

import torch


def _bytes(name: str) -> int | None:
    text = os.environ.get(name, "")
    if not text:
        return None
    if not text.isdecimal():
        raise ValueError(f"The environment variable {name} must be a non-negative integer.\n  Got: {text!r}")
    return int(text)


residual_bytes = _bytes("T2J_RESIDUAL_BYTES")
"""T2J_RESIDUAL_BYTES: how many bytes the kept autograd graphs may hold on each device; by default half its memory."""


@functools.cache
def residual_limit(device: torch.device) -> int:
    """How many bytes the kept autograd graphs may hold on `device`."""
    return _memory_of(device) // 2 if residual_bytes is None else residual_bytes


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # `os.sysconf` or these names exist on POSIX alone
        return 8 << 30
