"""How every benchmark here is timed and reported.

Contestants share one process and take turns: each round visits all of them in a fresh random order and
takes one sample of each, so that a busy machine slows everyone alike. Ratios are taken inside a round, where
both sides met the same load, and the median over rounds is reported.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from itertools import repeat
from pathlib import Path

# torch.set_num_threads reaches the calling thread only; XLA's threads follow the environment, which torch
# reads when it loads.
if "torch" in sys.modules:
    raise ImportError("Import the benchmark harness before torch: it pins the number of threads.")
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)

Call = Callable[[], object]
"""One timed call, which returns when its result is ready."""

PACKAGES = ("torch", "jax", "jaxlib", "numpy", "t2j-core", "t2j-autodiff", "t2j-dist", "wrap_torch2jax")


@dataclass(frozen=True)
class Quartiles:
    """Median and inter-quartile range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Row:
    """One line of the report; `reference` and `ratio` are there where the line is compared with another."""

    question: str
    name: str
    unit: str
    value: Quartiles
    samples: int = 1
    calls_per_sample: int = 1
    reference: str | None = None
    ratio: Quartiles | None = None
    target: float | None = None
    verdict: str | None = None


def count_row(question: str, name: str, unit: str, value: float, target: float | None = None) -> Row:
    """A line for a single figure that is not a time: a count or a size."""
    verdict = _verdict(value, target)
    return Row(question, name, unit, Quartiles.of([value]), target=target, verdict=verdict)


def sample_row(question: str, name: str, seconds: Sequence[float], target: float | None = None) -> Row:
    """A line for times that were taken elsewhere (fresh processes); `target` bounds the median in seconds."""
    value = Quartiles.of(seconds)
    verdict = _verdict(value.median, target)
    return Row(question, name, "s", value, len(seconds), target=target, verdict=verdict)


def _verdict(value: float, target: float | None) -> str | None:
    return None if target is None else "met" if value <= target else "missed"


@dataclass(frozen=True)
class Pace:
    """How long to measure: rounds, seconds of one sample, seconds of warm-up per contestant."""

    rounds: int
    sample: float = 0.02
    warmup: float = 0.2


@dataclass
class Report:
    """The lines measured so far, and who could not take part."""

    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def skip(self, question: str, name: str, error: BaseException) -> None:
        reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
        self.skipped[f"{question}: {name}"] = f"{type(error).__name__}: {reason}"


@dataclass(frozen=True)
class Versus:
    """Compare a contestant with `reference`, and with a `target` for the ratio where there is one."""

    reference: str
    target: float | None = None


class Race:
    """Contestants that are timed against each other, one race per question."""

    def __init__(self, question: str, report: Report) -> None:
        self.question = question
        self._report = report
        self._calls: dict[str, Call] = {}
        self._versus: dict[str, Versus] = {}

    def enter(
        self,
        name: str,
        make: Callable[[], Call],
        versus: Versus | None = None,
        check: Callable[[object], None] | None = None,
    ) -> None:
        """Add a contestant; one that cannot be built or whose first result fails `check` is skipped aloud."""
        try:
            call = make()
            result = call()
            if check is not None:
                check(result)
        except Exception as error:  # one that is absent or broken must not cost the others their figures
            self._report.skip(self.question, name, error)
            return
        self._calls[name] = call
        if versus is not None:
            self._versus[name] = versus

    def run(self, pace: Pace) -> None:
        """Time the contestants and add one line for each to the report."""
        calls = {name: _calibrate(call, pace) for name, call in self._calls.items()}
        samples: dict[str, list[float]] = {name: [] for name in self._calls}
        order = list(self._calls)
        shuffle = random.Random(0).shuffle
        for _ in range(pace.rounds):
            shuffle(order)
            for name in order:
                samples[name].append(_sample(self._calls[name], calls[name]))
        self._report.rows += [self._row(name, samples, calls[name]) for name in self._calls]

    def _row(self, name: str, samples: Mapping[str, Sequence[float]], calls: int) -> Row:
        value = Quartiles.of([1e6 * second for second in samples[name]])
        row = Row(self.question, name, "us", value, len(samples[name]), calls)
        versus = self._versus.get(name)
        if versus is None or versus.reference not in samples:
            return row
        pairs = zip(samples[name], samples[versus.reference], strict=True)
        ratio = Quartiles.of([mine / other for mine, other in pairs])
        verdict = _verdict(ratio.median, versus.target)
        return replace(row, reference=versus.reference, ratio=ratio, target=versus.target, verdict=verdict)


def _calibrate(call: Call, pace: Pace) -> int:
    """Warm `call` up and return how many calls fill one sample."""
    count, end = 0, time.perf_counter() + pace.warmup
    start = time.perf_counter()
    while count < 2 or time.perf_counter() < end:
        call()
        count += 1
    return max(1, round(pace.sample * count / (time.perf_counter() - start)))


def _sample(call: Call, count: int) -> float:
    """Mean seconds of `count` calls, after one untimed call that refills the caches for this contestant."""
    call()
    clock = time.perf_counter
    start = clock()
    for _ in repeat(None, count):
        call()
    return (clock() - start) / count


def environment() -> dict[str, object]:
    """Versions, machine and commit, for the head of the results file."""
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "machine": {"system": platform.platform(terse=True), "cpu": _cpu_model(), "cores": os.cpu_count()},
        "torch_threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", ":/packages")),
    }


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


def _git(*args: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def save(report: Report, head: Mapping[str, object], path: Path) -> None:
    """Write the results file."""
    content = {"environment": head, "rows": [asdict(row) for row in report.rows], "skipped": report.skipped}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def table(report: Report) -> str:
    """The results as text."""
    lines: list[tuple[str, ...]] = []
    question = None
    for row in report.rows:
        if row.question != question:
            question = row.question
            lines += [("",) * 6, (question,)]
        lines.append(_cells(row))
    widths = [max(len(line[i]) for line in lines if len(line) == 6) for i in range(6)]
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
