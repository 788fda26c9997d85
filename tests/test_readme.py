"""The code blocks of every README run, and CI runs the set-up commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from _markdown import blocks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(page, "python")
    assert found
    namespace: dict[str, object] = {}
    for block in found:  # one after another, like a reader
        exec(compile(block, str(page), "exec"), namespace)


def test_the_first_two_shell_lines_set_up_everything() -> None:
    lines = [line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines()]
    demo, tests = (line.split("#")[0].strip() for line in lines[:2])
    assert demo == f"{tests} -s demo"
    assert tests in (ROOT / ".ci" / "run").read_text().splitlines()
