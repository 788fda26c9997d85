"""`scripts/gpu_check.sh` without a GPU, and what its first part does with questions that hang, crash and fail."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from common import ALL

ROOT = Path(__file__).parents[2]
QUESTIONS = ROOT / "scripts" / "first_contact"

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="needs `timeout` of GNU coreutils")


def gpu_check(results: Path, parts: str, *, first: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run parts of the script on the CPU, with the packages that this process imports."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # its `python3` is this one
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
        "T2J_GPU_SITE": str(results / "site"),
        "T2J_GPU_PARTS": parts,
        "T2J_GPU_FIRST": f"--device cpu {first}",
        "T2J_GPU_MARK": "not gpu",
        "T2J_GPU_SECONDS": "500",  # on a busy machine
        "T2J_FIRST_SECONDS": "300",
    }
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), str(results)]
    return subprocess.run(
        command, env=environment | variables, text=True, capture_output=True, timeout=600, check=False
    )


def read(results: Path) -> tuple[dict[str, int], dict[str, dict]]:
    """The exit code of each part, and each question with its line."""
    parts = json.loads((results / "parts.json").read_text())
    lines = [json.loads(line) for line in (results / "first_contact.jsonl").read_text().splitlines()]
    assert all(set(part) == {"part", "exit", "seconds"} for part in parts)
    assert all(("answer" in line) != ("error" in line) for line in lines)
    rows = {line["question"]: line for line in lines}
    assert len(rows) == len(lines), "a question has two lines"
    return {part["part"]: part["exit"] for part in parts}, rows


@pytest.mark.skipif(not ALL, reason="takes half a minute: T2J_ALL=1 runs it")
def test_a_dry_run(tmp_path):
    only = "a_key_decides or keeps_its_bits"
    done = gpu_check(tmp_path, "first tests", first="--patience 4", PYTEST_ADDOPTS=f"-k '{only}' -q")
    parts, rows = read(tmp_path)
    assert [line for line in rows.values() if "error" in line] == []
    assert parts == {"first": 0, "tests": 0}, done.stdout
    assert done.returncode == 0, done.stdout
    written = re.findall(r"@question\(.*\n(?:@.*\n)*def (\w+)", "".join(p.read_text() for p in QUESTIONS.glob("*.py")))
    ends = {"end of calls+threads", "end of command_buffers", "end of costs+waits+memory+compiled"}
    assert set(rows) == {*written, *ends}
    assert all(rows[name]["answer"] == {"exit code": 0} for name in ends)
    assert rows["what_waits"]["answer"] == "-"
    has_compiler = [int(n) for n in rows["versions"]["answer"]["torch"].split(".")[:2]] >= [2, 9]
    assert has_compiler == ("vjp" in str(rows["compiled_functions"]["answer"]["compile=True"]["explain"]))
    tests = [json.loads(line) for line in (tmp_path / "tests.jsonl").read_text().splitlines()]
    assert {test["outcome"] for test in tests} == {"passed"}


BROKEN = """
    import ctypes, faulthandler, os
    from _questions import check, question

    @question(1)
    def hangs():
        print("printed")
        ctypes.PyDLL(None).pause()  # and keeps the GIL

    @question(30)
    def fails():
        check(False, "wrong", 7)

    @question(30)
    def crashes():
        os.abort()

    @question(30)
    def works():
        return "an answer"

    @question(30, needs_gpu=True)
    def needs_a_gpu():
        return "of a GPU"
"""


def test_questions_that_hang_crash_and_fail(tmp_path):
    (tmp_path / "broken.py").write_text(textwrap.dedent(BROKEN))
    done = gpu_check(tmp_path, "first", first=f"--also {tmp_path / 'broken.py'} --only")
    parts, rows = read(tmp_path)
    assert list(rows) == ["hangs", "fails", "crashes", "works", "needs_a_gpu", "end of broken"]
    assert "the limit was 1 s" in rows["hangs"]["error"]
    assert "in hangs" in rows["hangs"]["stacks"]
    assert rows["fails"]["error"] == "AssertionError: wrong: 7"
    assert "in crashes" in rows["crashes"]["stacks"]
    assert rows["works"]["answer"] == "an answer"
    assert rows["needs_a_gpu"]["answer"] == "-"
    assert parts == {"first": 1}
    assert done.returncode == 1


@pytest.mark.parametrize("error", ["fails", "crashes", "exits", "late", "too late", "does not start"])
def test_one_bad_question_or_end_is_enough_to_fail(tmp_path, error):
    first = {"exits": "import atexit, os; atexit.register(os._exit, 3)", "does not start": "import missing"}
    body = {"fails": "1 / 0", "crashes": "import os; os.abort()"}
    lines = [first.get(error, ""), "from _questions import question", "@question(30)", "def bad():"]
    (tmp_path / "bad.py").write_text("\n".join([*lines, f"    {body.get(error, 'return 1')}"]))
    seconds = {"late": "0.5", "too late": "0"}.get(error, "20")
    command = [sys.executable, str(QUESTIONS), "--device", "cpu", "--seconds", seconds, "--also", "bad.py", "--only"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=60, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = {"exits": "end of bad", "too late": "start of bad", "does not start": "start of bad"}.get(error, "bad")
    assert [row["question"] for row in rows if "error" in row] == [wrong], done.stdout
    assert len(rows) == (2 if error in ("fails", "exits", "late") else 1)  # no process begins that has no question
    assert done.returncode == 1


@pytest.fixture
def worker(tmp_path):
    """A process of the driver that runs a program."""
    spec = importlib.util.spec_from_file_location("first_contact", QUESTIONS / "__main__.py")
    driver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(driver)
    with (tmp_path / "log.txt").open("w+") as log:
        yield lambda program: driver.Worker([sys.executable, "-c", program], dict(os.environ), log)


def test_a_process_that_ignores_its_limit_is_killed(worker):
    asked = worker("import time; time.sleep(600)")
    assert asked.next(0.5) is None
    assert asked.process.wait(60) == -9


def test_a_process_that_does_not_end_is_killed(worker):
    asked = worker("import os, time; os.close(1); time.sleep(600)")
    assert asked.next(60) is None
    assert asked.end(0.5) == -9
