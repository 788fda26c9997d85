"""What is kept of a run: the journal, the columns, and the tables of the docs."""

from __future__ import annotations

import json
from pathlib import Path

import opdb
import pages
import pytest
import report
from journal import Journal
from runner import Result, Worker

RESULTS = pages.ROOT / "benchmarks" / "results"


def result(op: str) -> Result:
    return Result(op, "float32", "forward", 0, "passed")


def test_a_run_goes_on_from_its_journal_and_no_other(tmp_path: Path) -> None:
    path, worker = tmp_path / "build" / "journal.jsonl", Worker("float32", 1)
    first = Journal(path, worker)
    assert first.done == set()
    first.add([result("sin"), result("cos")])
    again = Journal(path, worker)
    assert again.done == {"sin", "cos"}
    assert again.results == [result("sin"), result("cos")]
    for other in (Worker("float64", 1), Worker("float32", 2), Worker("float32", 1, compiles=True)):
        with pytest.raises(SystemExit, match="different run"):
            Journal(path, other)
    Journal(None, worker).add([result("tan")])


def test_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["sin", "cos", "tan", "exp", "log"]
    found = []
    for number in (1, 2):
        monkeypatch.setattr("sys.argv", ["opdb.py", "--part", f"{number}/2"])
        found.append(opdb.chosen(names, opdb.arguments()))
    assert found == [[0, 2, 4], [1, 3]]
    monkeypatch.setattr("sys.argv", ["opdb.py", "--part", "3/2"])
    with pytest.raises(SystemExit):
        opdb.arguments()


def test_a_column_says_what_is_not_as_usual() -> None:
    assert Worker("float32", 1).column == "float32"
    assert Worker("float64", 1, suite="second").column == "float64 second derivatives"
    assert Worker("float32", 1, suite="train", compiles=True).column == "float32 in training compiled"
    assert Worker("float8_e5m2", 1, suite="float8").column == "float8_e5m2"


def test_a_table_of_modules_names_them() -> None:
    worker = Worker("float32", 1, suite="eval")
    run = report.summary([result("nn.Linear")], {"failures": []}, worker, 1.0)
    table = report.table({worker.column: run})
    assert "| modules counted | 1 of 1 |" in table
    assert "operators" not in table


def test_the_docs_show_the_committed_results() -> None:
    text = pages.PAGE.read_text()
    assert pages.filled(text) == text, "run `python tests/contract/pages.py`"
    for file in ("opdb", "module_db"):
        found = json.loads((RESULTS / f"{file}.json").read_text())
        assert all(f"| {key} (" in text for key, run in found.items() if "device" not in run)
