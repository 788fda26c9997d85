"""The committed results, and the tables and plots made from them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from _models_tables import COLUMNS, FITTED  # noqa: E402
from _results import Results, number  # noqa: E402
from _tables import PAGES, filled  # noqa: E402

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


def test_nox_runs_every_script():
    text = (ROOT / "noxfile.py").read_text()
    run = re.findall(r'"(\w+)"', re.search(r"^BENCHMARKS = (\(.*?^\))", text, flags=re.M | re.S)[1])
    assert sorted(run) == [name for name in SCRIPTS if name != "gpu"]


def test_every_contestant_is_measured_or_listed_with_the_reason():
    rows, skipped = RESULTS["models"], RESULTS.skipped("models")
    for question, at in {(row.question, row.at) for row in rows if FITTED not in row.question}:
        place = question if at is None else f"{question}, {at:,.0f}"
        measured = {row.name for row in rows if (row.question, row.at) == (question, at)}
        measured |= {who.rpartition(": ")[2] for who in skipped if who.rpartition(": ")[0] == place}
        assert measured == set(COLUMNS) - ({"t2j graph"} if question.startswith("forward") else set())


def test_ratios_are_to_torch_and_the_cost_of_a_leaf_is_fitted():
    rows = RESULTS["models"]
    others = [row for row in rows if row.name != "torch, native" and "without leaves" not in row.question]
    assert all(row.reference == "torch, native" and row.ratio for row in others)
    for kind in ("forward", "step"):
        for what in ("each leaf", "without leaves"):
            names = [row.name for row in rows if row.question == f"{kind}, {what}{FITTED}"]
            assert {"torch, native", "t2j", "wrap_torch2jax"} <= set(names)


def test_a_line_is_fitted_in_each_round():
    code = """
import json, bench_models
times = {n: [(3 * n + 20) / 1e6, (5 * n + 40) / 1e6] for n in (10, 100, 300)}
slow = {n: [2 * second for second in seconds] for n, seconds in times.items()}
rows = bench_models.per_leaf("step", {n: {"torch, native": times[n], "t2j": slow[n]} for n in times})
print(json.dumps([[row.name, row.value.median, row.ratio and row.ratio.median] for row in rows]))
"""
    assert [[name, round(value, 6), ratio and round(ratio, 6)] for name, value, ratio in json.loads(run(code))] == [
        ["torch, native", 4, None],
        ["t2j", 8, 2],
        ["torch, native", 30, None],
        ["t2j", 60, None],
    ]


def test_a_run_is_resumed_at_the_same_commit_only(tmp_path):
    code = f"""
import json, pathlib, _script
from _harness import Report, count_row
path = pathlib.Path({str(tmp_path / "results.json")!r})
head = {{**_script.environment(), "quick": True, "uncommitted_changes": False}}
report = Report([count_row("question", "name", "us", 3.0)], {{"question: other": "absent"}})
_script.save(report, {{**head, "minutes": 2.5, "questions": ["first"]}}, path)
same = _script.earlier(path, head)
others = [_script.earlier(path, {{**head, key: value}}) for key, value in
          [("commit", "another"), ("versions", {{}}), ("uncommitted_changes", True), ("quick", False)]]
print(json.dumps([same[0] == report, same[1:], [other[0] == Report() and other[1:] for other in others]]))
"""
    assert json.loads(run(code)) == [True, [["first"], 2.5], [[[], 0.0]] * 4]


def test_real_models_are_what_their_names_say():
    from _real_models import REAL, leaves_task, sizes_of

    sizes = {name.partition(",")[0]: sizes_of(real.make()[0]) for name, real in REAL.items() if "GPT" not in name}
    assert sizes["mobile convnet"]["convolutions"] == 31
    assert sizes["ResNet-18"]["parameters"] == 11_689_512  # as in torchvision
    for n in (10, 100, 300):
        assert sizes_of(leaves_task(n).make()[0])["leaves"] == n


def test_prose_about_speed_states_no_figures_of_its_own():
    text = (ROOT / "docs" / "speed.md").read_text()
    prose = re.sub(r"<!-- results: .*?<!-- end of results -->|^```.*?^```", "", text, flags=re.M | re.S)
    assert not re.findall(r"\d[\d.]*\s?(?:×|%|ms\b|µs\b|times\b)", prose)


def run(code: str) -> str:
    """What a new process prints: the harness must be imported before torch."""
    path = {"PYTHONPATH": str(ROOT / "benchmarks")}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **path}).stdout


def test_numbers_have_three_digits():
    assert [number(x) for x in (0.12345, 1.5, 12.34, 999.6, 12345.0, -1150)] == [
        *("0.123", "1.5", "12.3", "1,000", "12,300", "-1,150")
    ]
