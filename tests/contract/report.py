"""The counts of a run, and the table of all runs."""

from __future__ import annotations

import collections
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from known import UNKNOWN, key_of, place_of, versions
from runner import Result, Worker

TITLES = {
    "forward": "forward",
    "again": "three calls",
    "vjp": "VJP",
    "jvp": "JVP",
    "vmap": "vmap",
    "vmap_vjp": "vmap(VJP)",
    "vjp_vjp": "reverse over reverse",
    "jvp_vjp": "forward over reverse",
    "vjp_jvp": "reverse over forward",
}
"""The rows of the table."""


def commit() -> str:
    """The commit of the working tree, with a plus sign where the packages have changes."""
    if shutil.which("git") is None:
        return ""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", ":/packages"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def summary(results: Sequence[Result], known: dict[str, Any], worker: Worker, seconds: float) -> dict[str, Any]:
    """The counts of one run."""
    classes = {key_of(entry): entry["class"] for entry in known["failures"]}
    failed = [r for r in results if r.outcome == "failed"]
    not_counted: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for r in results:
        if r.outcome == "not counted":
            not_counted[r.check][re.sub(r" \(\w+\)$", "", r.reason)] += 1
    counted = {r.op for r in results if r.outcome != "not counted"}
    where = {} if worker.device == "cpu" else {"device": worker.device_name}
    compiled = {"not_compiled": not_compiled(results)} if worker.compiles else {}
    return (
        where
        | compiled
        | {
            "samples": worker.samples,
            "path": "eager" if worker.eager else "jit",
            worker.kind: len({r.op for r in results}),
            f"{worker.kind}_counted": len(counted),
            f"{worker.kind}_without_failure": len(counted - {r.op for r in failed}),
            "checks": {check: tally(results, check) for check in TITLES if any(r.check == check for r in results)},
            "not_counted": {check: dict(counter.most_common()) for check, counter in not_counted.items()},
            "failures_by_class": dict(collections.Counter(classes.get(r.key, UNKNOWN) for r in failed).most_common()),
            "failures": [f"{r.op} {r.check} #{r.sample}: {r.reason}" for r in failed],
            "seconds": round(seconds),
            "worker_seconds": round(sum(r.seconds for r in results)),
            "versions": versions(),
            "commit": commit(),
        }
    )


def not_compiled(results: Iterable[Result]) -> dict[str, str]:
    """The operators that were not compiled in some check, and why."""
    return {f"{r.op} {r.check}": r.not_compiled for r in results if r.not_compiled}


def tally(results: Iterable[Result], check: str) -> dict[str, int]:
    """The numbers of passed and counted checks of a kind."""
    counts = collections.Counter(r.outcome for r in results if r.check == check)
    return {"passed": counts["passed"], "run": counts["passed"] + counts["failed"]}


def table(report: dict[str, Any]) -> str:
    """All runs of a results file as a Markdown table."""
    runs = sorted(report.items(), key=lambda item: (item[1].get("device", ""), place_of(item[0])))
    head = [""] + [f"{key} ({run['samples']} sample{'s' * (run['samples'] > 1)}, {run['path']})" for key, run in runs]
    rows = [head, ["---"] * len(head)]
    what = "modules" if "modules" in runs[0][1] else "operators"
    rows.append([f"{what} counted"] + [f"{run[f'{what}_counted']} of {run[what]}" for _, run in runs])
    for check in [check for check in TITLES if any(check in run["checks"] for _, run in runs)]:
        rows.append([TITLES[check]] + [share(run["checks"].get(check)) for _, run in runs])
    if any("not_compiled" in run for _, run in runs):
        counts = [len(run["not_compiled"]) if "not_compiled" in run else None for _, run in runs]
        rows.append(["checks that ran without being compiled"] + ["-" if n is None else str(n) for n in counts])
    rows.append([f"{what} without a failure"] + [str(run[f"{what}_without_failure"]) for _, run in runs])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def share(counts: dict[str, int] | None) -> str:
    """Passed and counted checks, and the percentage, which is 100 % only if all passed."""
    if counts is None or not counts["run"]:
        return "-"
    percent = 100 * counts["passed"] / counts["run"]
    percent = percent if percent == 100 else min(percent, 99.9)
    return f"{counts['passed']} / {counts['run']} ({percent:.1f} %)"


def run_key(worker: Worker) -> str:
    """The key of a run in a results file: its column, and its device unless that is the CPU."""
    return worker.column if worker.device == "cpu" else f"{worker.column} on {worker.device_name}"


def save(path: Path, key: str, run: dict[str, Any]) -> dict[str, Any]:
    """Add a run to the results file, which also has other dtypes and devices."""
    report = json.loads(path.read_text()) if path.exists() else {}
    report[key] = run
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    return report
