"""Every promise of the guarantees, and every limit, names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/concepts/guarantees.md"
FOLDERS = {name: f"packages/t2j-{name}/tests" for name in ("core", "autodiff", "dist")} | {"tests": "tests"}
WITHOUT_A_TEST = {"XLA cannot optimise inside a call.", "Not tested"}  # nothing to raise, and nowhere to run
ROWS = re.findall(r"^\| (.*) \| (`.*`) \|$", PAGE.read_text(), flags=re.M)


def paragraphs(text: str) -> list[str]:
    """The bold words with which paragraphs begin."""
    return re.findall(r"^\*\*(.+?)\*\*", text, flags=re.M)


def defined(file: str) -> set[str]:
    folder, _, name = file.partition("/")
    tree = ast.parse((ROOT / FOLDERS[folder] / name).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def check_that_tests_exist(cell: str) -> None:
    """Each name in a cell of a table, such as `core/test_lent.py::test_name`, is that of a test."""
    for node in re.findall(r"`([^`]+)`", cell):
        file, _, name = node.partition("::")
        assert name.startswith("test_")
        assert name in defined(file)


@pytest.mark.parametrize(("promise", "tests"), ROWS, ids=[promise for promise, _ in ROWS])
def test_a_promise_names_tests_that_exist(promise, tests):
    check_that_tests_exist(tests)


def test_every_promise_and_every_limit_has_a_row():
    promises = (ROOT / "packages/t2j-core/README.md").read_text().partition("## Guarantees")[2]
    limits = PAGE.read_text().partition("## Limits")[2].partition("\n## ")[0]
    stated = [name for name in paragraphs(promises) + paragraphs(limits) if name not in WITHOUT_A_TEST]
    listed = [name for promise, _ in ROWS for name in re.findall(r"^\*\*(.+?)\*\*", promise)]
    assert listed == stated
