"""The mark of tests whose results are those of one torch."""

from __future__ import annotations

from importlib import metadata

import pytest
from known import load_known

KNOWN = load_known()


def release(version: str) -> list[str]:
    """The first two numbers of a version."""
    return version.split(".")[:2]


same_torch = pytest.mark.skipif(
    release(KNOWN["versions"].get("torch", "")) != release(metadata.version("torch")),
    reason="the list of known failures is that of another torch",
)
