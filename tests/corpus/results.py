"""Results of the corpus, the list of known failures, and what a run reports."""

from __future__ import annotations

import collections
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KNOWN = HERE / "known_failures.json"
REQUIREMENTS = HERE / "requirements.txt"
UNKNOWN = "unclassified"
Key = tuple[str, str]
"""The key of a failure: case and check."""


@dataclass(frozen=True)
class Result:
    """The outcome of one check, or the times of a step."""

    case: str  # "package/name"
    check: str
    outcome: str = ""  # "passed", "failed", "not counted"; none for a step
    reason: str = ""
    seconds: float = 0.0
    ratio: float | None = None
    native_ms: float | None = None
    t2j_ms: float | None = None

    @property
    def key(self) -> Key:
        return self.case, self.check


def load_known(path: Path = KNOWN) -> list[dict[str, str]]:
    """The listed failures."""
    return json.loads(path.read_text()) if path.exists() else []


def key_of(entry: dict[str, str]) -> Key:
    """The key of a listed failure."""
    return entry["case"], entry["check"]


def differences(results: Sequence[Result], known: Iterable[dict[str, str]]) -> list[str]:
    """Unlisted failures, listed ones that pass, and cases that show nothing, as lines of text."""
    listed = {key_of(entry): entry for entry in known}
    lines = []
    for r in results:
        if r.outcome == "not counted" and r.check == "forward":
            lines.append(f"the case shows nothing: {r.case}: {r.reason}")
        if r.outcome == "failed" and r.key not in listed:
            lines.append(f"not listed: {r.case}, {r.check}: {r.reason}")
        if r.outcome in ("passed", "not counted") and r.key in listed:
            lines.append(f"listed, but {r.outcome}: {r.case}, {r.check} ({listed[r.key]['class']})")
    return lines


def record(results: Sequence[Result], known: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The list in which the failures of this run replace older ones of the same checks. Classes are kept."""
    entries = {key_of(entry): entry for entry in known}
    for r in results:
        old = entries.pop(r.key, None)
        if r.outcome == "failed":
            entries[r.key] = {"case": r.case, "check": r.check, "class": UNKNOWN} | (old or {}) | {"reason": r.reason}
    return [entries[key] for key in sorted(entries)]


def write_known(known: Sequence[dict[str, str]]) -> None:
    """Write one line for each failure, so that a diff shows changes."""
    KNOWN.write_text("[\n" + ",\n".join(" " + json.dumps(entry) for entry in known) + "\n]\n")


def versions() -> dict[str, str]:
    """The versions of torch, of the packages, and of t2j."""
    packages = REQUIREMENTS.read_text().partition("# What they need")[0]
    names = re.findall(r"^([\w-]+)==", packages, flags=re.M)
    return {name: metadata.version(name) for name in ("t2j-core", "t2j-autodiff", "torch", *names)}


def commit() -> str:
    """The commit of the working tree, with a plus sign where the packages have changes."""
    if shutil.which("git") is None:
        return ""
    git = ["git", "-C", str(HERE)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", ":/packages"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def report(results: Sequence[Result], known: Iterable[dict[str, str]]) -> dict[str, Any]:
    """A run as it is saved: versions, and each case with its counts, times, failures and what was not counted."""
    classes = {key_of(entry): entry["class"] for entry in known}
    by_case: dict[str, list[Result]] = collections.defaultdict(list)
    for r in results:
        by_case[r.case].append(r)
    cases = {name: _summary(by_case[name], classes) for name in sorted(by_case)}
    return {"versions": versions(), "commit": commit(), "cpus": os.cpu_count(), "cases": cases}


def save(path: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Add a run to the results file, which also has other cases."""
    old = json.loads(path.read_text())["cases"] if path.exists() else {}
    cases = old | report["cases"]
    report = report | {"cases": {name: cases[name] for name in sorted(cases)}}
    path.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _summary(results: Sequence[Result], classes: dict[Key, str]) -> dict[str, Any]:
    passed = [r for r in results if r.outcome == "passed"]
    failed = [r for r in results if r.outcome == "failed"]
    step = [r for r in results if r.check == "step"]
    times = {
        name: value for r in step for name, value in asdict(r).items() if name.endswith(("ratio", "_ms")) and value
    }
    return {
        "passed": len(passed),
        "run": len(passed) + len(failed),
        "failed": {r.check: {"class": classes.get(r.key, UNKNOWN), "reason": r.reason} for r in failed},
        "not_counted": {r.check: r.reason for r in results if r.outcome == "not counted"},
        **times,
    }
