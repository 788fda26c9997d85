"""The file of helpers that every package has, because the tests of each run without the others, is the same."""

from __future__ import annotations

from pathlib import Path

PACKAGES = Path(__file__).parents[1] / "packages"


def test_the_common_helpers_are_the_same_in_every_package() -> None:
    files = sorted(PACKAGES.glob("*/tests/common.py"))
    assert len(files) == len(list(PACKAGES.iterdir()))
    assert len({file.read_text() for file in files}) == 1, f"copy the newest of {list(map(str, files))} over the others"
