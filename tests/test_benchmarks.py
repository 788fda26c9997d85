"""The committed results, and the tables and plots made from them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from _tables import PAGES, Results, filled, number  # noqa: E402

RESULTS = Results(ROOT / "benchmarks" / "results")
SCRIPTS = sorted(
    [path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py")]
    + ["gpu"] * (ROOT / "benchmarks" / "results" / "gpu.json").exists()  # not every release is measured on one
)


def test_every_script_has_committed_results_and_no_others():
    assert sorted(RESULTS) == SCRIPTS
    for name in RESULTS:
        assert not RESULTS.environment(name)["quick"]
        assert RESULTS.environment(name)["commit"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tables_are_those_of_the_results(page):
    text = page.read_text()
    assert filled(text, RESULTS) == text, "run `python benchmarks/plot.py --tables`"


def test_every_result_is_shown():
    shown = re.findall(r"<!-- results: ([\w-]+) -->", (ROOT / "benchmarks" / "README.md").read_text())
    assert sorted(shown) == SCRIPTS


def test_every_plot_can_be_drawn_again(tmp_path):
    pytest.importorskip("matplotlib")
    from plot import draw

    drawn = {path.name for path in draw(RESULTS, tmp_path)}
    committed = {path.name for path in (ROOT / "benchmarks" / "plots").glob("*.svg")}
    assert drawn == committed
    for name in drawn:
        assert ElementTree.parse(tmp_path / name).getroot().tag.endswith("svg")


def test_numbers_have_three_digits():
    assert [number(x) for x in (0.12345, 1.5, 12.34, 999.6, 12345.0)] == ["0.123", "1.5", "12.3", "1,000", "12,300"]
