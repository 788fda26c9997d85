"""The timing of every benchmark here.

Contestants share one process and take turns. Each round visits all of them in a new random order and takes one sample
of each, so that a busy machine slows all contestants equally. Ratios are computed inside a round, where both
contestants met the same load. The report has the median over rounds.

Importing this module first pins the process to one core and both frameworks to one thread, unless T2J_BENCH_CORES is
"all". No XLA flag can do that: XLA's flags leave matrix products on several threads.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat

if "torch" in sys.modules or "jax" in sys.modules:
    raise ImportError("Import the benchmark harness before torch and jax: it pins the number of threads.")


IS_PINNED = os.environ.get("T2J_BENCH_CORES") != "all" and hasattr(os, "sched_setaffinity")


def _pin() -> str:
    """Pin this process to its last core where the system supports it, and return a description of the threads."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    if not IS_PINNED:
        return "torch: 1 thread; XLA: its own"
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    return "process pinned to one core: 1 thread for torch, 1 for XLA"


def _settle_malloc() -> str:
    """Fix glibc's dynamic thresholds. Otherwise earlier calls decide whether a call gets warm memory."""
    trim, mmap = -1, -3
    mallopt = libc("mallopt")
    settled = IS_PINNED and mallopt is not None and mallopt(mmap, 32 << 20) and mallopt(trim, 1 << 30)
    return "below 32 MB kept for reuse, above mapped anew" if settled else "the system's own"


def libc(name: str) -> Callable[..., int] | None:
    """The function of this name in the C library, or None."""
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return found


THREADS = _pin()
MEMORY = _settle_malloc()

import torch  # noqa: E402

torch.set_num_threads(1)

Call = Callable[[], object]
"""One timed call, which returns when its result is ready."""


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
    """One line of the report; `reference` and `ratio` are set if the line is compared with another one.

    A question along an axis (sizes, leaves, batches) has one line for each place `at` on the axis.
    """

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
    at: float | None = None


def count_row(
    question: str, name: str, unit: str, value: float, target: float | None = None, at: float | None = None
) -> Row:
    """A line for a single figure that is not a time: a count or a size."""
    return Row(question, name, unit, Quartiles.of([value]), target=target, verdict=_verdict(value, target), at=at)


def sample_row(question: str, name: str, values: Sequence[float], target: float | None = None, unit: str = "s") -> Row:
    """A line for values that were measured elsewhere (new processes); `target` is the upper bound of the median."""
    value = Quartiles.of(values)
    return Row(question, name, unit, value, len(values), target=target, verdict=_verdict(value.median, target))


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
    """The lines measured so far, and the contestants that were skipped."""

    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def skip(self, question: str, name: str, error: BaseException) -> None:
        reason = re.sub(r"/\S*/site-packages/", "", (str(error).strip() or repr(error)).splitlines()[0])[:200]
        self.skipped[f"{question}: {name}"] = f"{type(error).__name__}: {reason}"


@dataclass(frozen=True)
class Versus:
    """Compare a contestant with `reference`, and the ratio with `target` if there is one."""

    reference: str
    target: float | None = None


class Race:
    """Contestants that are timed against each other, one race per question and place."""

    def __init__(self, question: str, report: Report, at: float | None = None) -> None:
        self.question = question
        self.at = at
        self._report = report
        self._calls: dict[str, Call] = {}
        self._versus: dict[str, Versus] = {}
        self.samples: dict[str, list[float]] = {}

    def enter(
        self,
        name: str,
        make: Callable[[], Call],
        versus: Versus | None = None,
        check: Callable[[object], None] | None = None,
    ) -> bool:
        """Add a contestant, and return whether it takes part.

        The report lists a contestant as skipped if it cannot be built or its first result fails `check`.
        """
        try:
            call = make()
            result = call()
            if check is not None:
                check(result)
        except Exception as error:  # a missing or broken contestant must not stop the others
            place = "" if self.at is None else f", {self.at:,.0f}"
            self._report.skip(self.question + place, name, error)
            return False
        self._calls[name] = call
        if versus is not None:
            self._versus[name] = versus
        return True

    def run(self, pace: Pace) -> None:
        """Time the contestants and add one line for each of them to the report."""
        run_together([self], pace)

    def calibrate(self, pace: Pace) -> dict[str, int]:
        """How many calls of each contestant fill a sample."""
        self.samples = {name: [] for name in self._calls}
        return {name: _calibrate(call, pace) for name, call in self._calls.items()}

    def sample(self, name: str, calls: int) -> None:
        """Take a sample of one contestant."""
        self.samples[name].append(_sample(self._calls[name], calls))

    def finish(self, calls: Mapping[str, int]) -> None:
        """Add the lines to the report."""
        self._report.rows += [self._row(name, self.samples, calls[name]) for name in self._calls]

    def _row(self, name: str, samples: Mapping[str, Sequence[float]], calls: int) -> Row:
        value = Quartiles.of([1e6 * second for second in samples[name]])
        row = Row(self.question, name, "us", value, len(samples[name]), calls, at=self.at)
        versus = self._versus.get(name)
        if versus is None or versus.reference not in samples:
            return row
        pairs = zip(samples[name], samples[versus.reference], strict=True)
        ratio = Quartiles.of([mine / other for mine, other in pairs])
        verdict = _verdict(ratio.median, versus.target)
        return replace(row, reference=versus.reference, ratio=ratio, target=versus.target, verdict=verdict)


def run_together(races: Sequence[Race], pace: Pace) -> None:
    """Run races in the same rounds, so that their samples may be compared with each other, too."""
    calls = [race.calibrate(pace) for race in races]
    order = [(place, name) for place, named in enumerate(calls) for name in named]
    shuffle = random.Random(0).shuffle
    for _ in range(pace.rounds):
        shuffle(order)
        for place, name in order:
            races[place].sample(name, calls[place][name])
    for race, named in zip(races, calls, strict=True):
        race.finish(named)


def _calibrate(call: Call, pace: Pace) -> int:
    """Warm up `call` and return how many calls fill one sample. The first calls may take longer than later ones."""
    clock, seconds = time.perf_counter, []
    end = clock() + pace.warmup
    while len(seconds) < 3 or clock() < end:
        start = clock()
        call()
        seconds.append(clock() - start)
    return max(1, round(pace.sample / statistics.median(seconds)))


def _sample(call: Call, count: int) -> float:
    """Mean seconds of `count` calls, after one untimed call that refills the caches for this contestant."""
    call()
    clock = time.perf_counter
    start = clock()
    for _ in repeat(None, count):
        call()
    return (clock() - start) / count
