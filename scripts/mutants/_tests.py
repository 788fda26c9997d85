"""Runs tests in a copy of the code, in processes of their own, because a fault may hang or crash them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_NO_TESTS = 5  # the exit code of pytest that has found none


class NoTestsError(Exception):
    """Tests that are not there, or that fail without any fault."""


def failure(folder: Path, tests: Iterable[str], limit: float) -> str | None:
    """How the tests fail in the copy at `folder`; None if they pass. More than `limit` seconds count as a failure."""
    for group in by_package(tests):
        if (found := _failure_of(folder, group, limit)) is not None:
            return found
    return None


def by_package(tests: Iterable[str]) -> list[list[str]]:
    """The tests in groups that one process can run: the packages have files of the same names."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for test in tests:
        groups.setdefault(Path(test).parts[:2], []).append(test)
    return list(groups.values())


def _failure_of(folder: Path, tests: list[str], limit: float) -> str | None:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", *tests]
    # A session of its own, so that the processes that a test has started end with it.
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folder.glob("packages/*/src")))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"more than {limit:g} s"
    if process.returncode == _NO_TESTS:
        raise NoTestsError(f"There are no tests {' '.join(tests)}.")
    return None if process.returncode == 0 else _summary(process.returncode, output)


def _summary(code: int, output: str) -> str:
    """The first test that has failed, or how the process ended."""
    failed = re.search(r"^(?:FAILED|ERROR) (?:\S*/)?(\w+\.py.*)$", output, re.MULTILINE)
    if failed is not None:
        return failed[1][:160]
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}: {output[-400:]}"
