"""The README's table of alternatives says what tests hold: a cell is the docstring of a test, or a link to a source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = {
    "any PyTorch code, including extensions": "test_any_pytorch_code",
    "arguments without a copy": "test_arguments_without_a_copy",
    "large results without a copy": "test_large_results_without_a_copy",
    "output shapes": "test_output_shapes",
    "reverse mode": "test_reverse_mode",
    "forward mode, `jax.hessian`": "test_forward_mode",
    "complex gradients": "test_complex_gradients",
    "`vmap`": "test_vmap",
    "parameters and buffers of modules": "test_parameters_of_modules",
    "random numbers from a JAX key": "test_random_numbers",
    "calls on sharded arrays": "test_sharded_arrays",
    "an argument that your function keeps": "test_a_kept_argument",
    "an argument that it writes": "test_a_written_argument",
    "your exception arrives as": "test_exceptions",
    "compiles C++": "test_compiles_cpp",
    "TPU": "test_tpu",
}
"""The test of each row."""

LINK = re.compile(r"\[([^]]*)\]\(([^) ]+)(?: \"(\w+)\")?\)")


def table() -> list[list[str]]:
    section = (ROOT / "README.md").read_text().partition("\n## Compared with the alternatives\n")[2]
    lines = section.partition("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def text(cell: str) -> str:
    """A cell without its links and marks of footnotes."""
    return re.sub(r"\s*\[\^\w+\]", "", LINK.sub(r"\1", cell))


def docstrings(file: str) -> dict[str, str | None]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name: ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_row_has_a_test():
    _head, _rule, *rows, last = table()
    assert [text(label) for label, *_ in rows] == list(TESTS)
    files = {(ROOT / LINK.findall(cell)[0][1]) for cell in last[2:]}
    assert files == set(Path(__file__).parent.glob("test_*.py")) - {Path(__file__)}


@pytest.mark.parametrize("column", range(2, 7))
def test_a_cell_is_what_its_test_says(column):
    _head, _rule, *rows, last = table()
    held = docstrings(LINK.findall(last[column])[0][1])
    for label, *cells in rows:
        cell, test = cells[column - 1], TESTS[text(label)]
        linked = [path for _, path, _ in LINK.findall(cell)]
        if any(path.startswith("https://github.com/") for path in linked):
            assert test not in held, "a source and a test hold the same cell"
        else:
            assert held[test] == text(cell), f"{label}, {test}"


def test_cells_of_t2j_link_to_tests_that_exist():
    _head, _rule, *rows, _last = table()
    for label, cell, *_ in rows:
        links = LINK.findall(cell)
        assert links, label
        for _, path, test in links:
            assert test in docstrings(path) if test else (ROOT / path).is_file()
