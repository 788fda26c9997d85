"""CI runs the commands with which the README begins. Its Python blocks run in `test_docs.py`."""

from __future__ import annotations

from pathlib import Path

from _markdown import blocks

ROOT = Path(__file__).parents[1]


def test_the_first_two_shell_lines_set_up_everything() -> None:
    lines = [line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines()]
    explained, demo, also_explained, tests = lines[:4]
    assert explained.startswith("# ")
    assert also_explained.startswith("# ")
    assert demo == f"{tests} -s demo"
    assert tests in (ROOT / ".ci" / "run").read_text().splitlines()
