"""The environment variables that t2j reads, once and checked."""

from __future__ import annotations

import os
from dataclasses import dataclass


def _integer(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise ValueError(f"The environment variable {name} must be a non-negative integer.\n  Got: {text!r}")
    return value


@dataclass(frozen=True)
class Config:
    """Switches, each with the environment variable that sets it."""

    auto_output_bytes: int = _integer("T2J_AUTO_OUTPUT_BYTES", 1 << 20)
    """T2J_AUTO_OUTPUT_BYTES: from this many bytes of output `outputs="auto"` tries to avoid the copy."""

    checked_bytes: int = _integer("T2J_CHECKED_BYTES", 1 << 30)
    """T2J_CHECKED_BYTES: how many bytes of arguments all running calls may copy to check that they stay unchanged."""

    keys_on_device: int = _integer("T2J_KEYS_ON_DEVICE", 1)
    """T2J_KEYS_ON_DEVICE: 0 if the host is to read keys (`rng=True`) on a GPU too, which waits, and to seed torch."""

    kept_errors: int = _integer("T2J_KEPT_ERRORS", 16)
    """T2J_KEPT_ERRORS: how many exceptions of calls under a user's own `jit` are kept at most."""

    progress_seconds: int = _integer("T2J_PROGRESS_SECONDS", 2)
    """T2J_PROGRESS_SECONDS: after how many seconds the log says that a function is still being inferred, traced or
    compiled; 0 for never."""


config = Config()
