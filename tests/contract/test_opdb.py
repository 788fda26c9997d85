"""One sample of each of PyTorch's operators, called eagerly in float32; `opdb.py` runs more of them, under `jit`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata

import opdb
import pytest

pytest.importorskip("expecttest", reason="torch's list of operators imports it")
pytest.importorskip("scipy", reason="torch draws samples with it")

KNOWN = opdb.load_known()
CHUNKS = 16


def release(version: str) -> list[str]:
    """The first two numbers of a version."""
    return version.split(".")[:2]


same_torch = pytest.mark.skipif(
    release(KNOWN["versions"].get("torch", "")) != release(metadata.version("torch")),
    reason="the list of known failures is that of another torch",
)


@pytest.fixture(scope="module")
def worker() -> Iterator[opdb.Worker]:
    """One process for all operators, because torch takes long to list them."""
    worker = opdb.Worker("float32", samples=1, eager=True)
    worker.start()
    yield worker
    worker.stop()


@same_torch
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_operators(worker: opdb.Worker, chunk: int) -> None:
    indices = [i for i in range(chunk, len(worker.names), CHUNKS) if worker.names[i] not in opdb.SLOW]
    results = [result for index in indices for result in worker.run(index)]
    assert len({r.op for r in results}) == len(indices)
    assert sum(r.outcome == "passed" for r in results) > 3 * len(indices)
    assert not opdb.differences(results, KNOWN)


def test_known_failures_are_classified_and_listed_once() -> None:
    keys = [opdb.key_of(entry) for entry in KNOWN["failures"]]
    assert len(keys) == len(set(keys))
    assert all(entry["class"] != opdb.UNKNOWN and entry["reason"] for entry in KNOWN["failures"])


def result(outcome: str, sample: int = 0) -> opdb.Result:
    return opdb.Result("sin", "float32", "vjp", sample, outcome, "Mismatch: output 0")


def test_a_failure_must_be_listed_and_a_listed_one_must_fail() -> None:
    known = opdb.record([result("failed")], {"failures": []})
    assert opdb.differences([result("failed")], known) == []
    assert opdb.differences([result("not counted")], known) == []
    (unlisted,) = opdb.differences([result("failed", 1)], known)
    assert unlisted.startswith("not listed: sin float32 vjp sample 1")
    (passing,) = opdb.differences([result("passed")], known)
    assert passing.startswith("listed, but passes: sin float32 vjp sample 0")


def test_recording_keeps_what_was_not_run_and_drops_what_passes() -> None:
    known = opdb.record([result("failed"), result("failed", 1)], {"failures": []})
    known["failures"][1]["class"] = "torch bug: written by hand"
    again = opdb.record([result("passed"), result("failed", 1)], json.loads(json.dumps(known)))
    assert [(entry["sample"], entry["class"]) for entry in again["failures"]] == [(1, "torch bug: written by hand")]
    assert opdb.record([], known) == known


def test_a_check_that_kills_the_process_is_a_failure_and_the_run_goes_on(
    tmp_path: opdb.Path, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr(opdb, "WORKER", program)
    worker = opdb.Worker("float32", samples=3)
    try:
        outcomes = [(r.sample, r.check, r.outcome, r.reason) for r in worker.run(0)]
    finally:
        worker.stop()
    died = (1, "forward", "failed", "the process died (signal 6)")
    assert outcomes == [(0, "forward", "passed", ""), died, (2, "forward", "passed", "")]
