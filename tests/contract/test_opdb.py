"""The operator database: what is recorded of operators that fail, and of processes that die."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import report
import runner
from known import UNKNOWN, differences, key_of, load_known, record

pytest.importorskip("expecttest", reason="torch's list of operators imports it")
pytest.importorskip("scipy", reason="torch draws samples with it")

KNOWN = load_known()


def test_known_failures_are_classified_and_listed_once() -> None:
    keys = [key_of(entry) for entry in KNOWN["failures"]]
    assert len(keys) == len(set(keys))
    assert all(entry["class"] != UNKNOWN and entry["reason"] for entry in KNOWN["failures"])


def result(outcome: str, sample: int = 0) -> runner.Result:
    return runner.Result("sin", "float32", "vjp", sample, outcome, "Mismatch: output 0")


def test_a_failure_must_be_listed_and_a_listed_one_must_fail() -> None:
    known = record([result("failed")], {"failures": []})
    assert differences([result("failed")], known) == []
    assert differences([result("not counted")], known) == []
    (unlisted,) = differences([result("failed", 1)], known)
    assert unlisted.startswith("not listed: sin float32 vjp sample 1")
    (passing,) = differences([result("passed")], known)
    assert passing.startswith("listed, but passes: sin float32 vjp sample 0")


def test_recording_keeps_what_was_not_run_and_drops_what_passes() -> None:
    known = record([result("failed"), result("failed", 1)], {"failures": []})
    known["failures"][1]["class"] = "torch bug: written by hand"
    again = record([result("passed"), result("failed", 1)], json.loads(json.dumps(known)))
    assert [(entry["sample"], entry["class"]) for entry in again["failures"]] == [(1, "torch bug: written by hand")]
    assert record([], known) == known


def test_a_check_that_kills_the_process_is_a_failure_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "worker.py"
    program.write_text(
        "import json, os, sys\n"
        "say = lambda **line: print(json.dumps(line), flush=True)\n"
        "say(names=['sin'])\n"
        "for line in sys.stdin:\n"
        "    for sample in range(json.loads(line)['first'], 3):\n"
        "        say(sample=sample, check='forward')\n"
        "        if sample == 1: os.abort()\n"
        "        say(sample=sample, check='forward', outcome='passed')\n"
        "    say(done=0)\n"
    )
    monkeypatch.setattr(runner, "WORKER", program)
    worker = runner.Worker("float32", samples=3)
    try:
        outcomes = [(r.sample, r.check, r.outcome, r.reason) for r in worker.run(0)]
    finally:
        worker.stop()
    died = (1, "forward", "failed", "the process died (signal 6)")
    assert outcomes == [(0, "forward", "passed", ""), died, (2, "forward", "passed", "")]


SERVES = """
import json, sys, time
say = lambda **line: print(json.dumps(line), flush=True)
say(names=['sin', 'cos', 'tan'], device='Some GPU')
for line in sys.stdin:
    for sample in range(json.loads(line)['first'], 3):
        say(sample=sample, check='forward')
        REPLY
        say(sample=sample, check='vjp', outcome='passed')
    say(done=0)
"""


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], runner.Worker]:
    """A process in which a line of code replaces the checks of an operator."""

    def make(reply: str) -> runner.Worker:
        program = tmp_path / "worker.py"
        program.write_text(SERVES.replace("REPLY", reply))
        monkeypatch.setattr(runner, "WORKER", program)
        return runner.Worker("float32", samples=3, device="cuda")

    return make


def test_a_check_that_loses_the_gpu_ends_its_process_and_keeps_its_outcome(
    serving: Callable[[str], runner.Worker],
) -> None:
    worker = serving("say(sample=sample, check='forward', outcome='not counted', lost=sample == 1)")
    try:
        outcomes = [(r.sample, r.check, r.outcome) for r in worker.run(0)]
    finally:
        worker.stop()
    whole = lambda sample: [(sample, "forward", "not counted"), (sample, "vjp", "passed")]
    assert outcomes == [*whole(0), (1, "forward", "not counted"), *whole(2)]


def test_a_run_ends_in_time_without_the_operators_that_are_not_done(
    serving: Callable[[str], runner.Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = serving("say(sample=sample, check='forward', outcome='passed')")
    workers = runner.started(worker, 2)
    assert {r.op for r in runner.run_all(workers, [0, 1, 2])} == {"sin", "cos", "tan"}
    workers = runner.started(serving("time.sleep(600)"), 2)
    for started in workers:
        started.end = time.monotonic() + 0.1
    assert runner.run_all(workers, [0, 1, 2]) == []


def test_runs_on_a_gpu_stand_beside_those_on_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "opdb.json"
    for worker in (runner.Worker("float64", 1, device="cuda", device_name="Some GPU"), runner.Worker("float32", 1)):
        run = report.summary([result("passed")], {"failures": []}, worker, 1.0)
        found = report.save(file, report.run_key(worker), run)
    assert set(found) == {"float32", "float64 on Some GPU"}
    assert report.table(found).startswith("|  | float32 (1 sample, jit) | float64 on Some GPU (1 sample, jit) |")
