"""Count the PyTorch operators that work through t2j, on the samples of PyTorch's own tests.

`python tests/contract/opdb.py --dtype float32 --samples 3 --output FILE.json [--check]`

For every operator and each of its first samples, it checks the outputs, reverse mode, forward mode, a batch, and a
batch of reverse mode, and compares each with native torch (`opdb_worker.py`). `known_failures.json` lists the known
failures. With `--check` the program fails if a failure is not listed, or a listed one passes.

`--device cuda` does the same on a GPU, with samples and native torch on the GPU. The list of known failures applies to
the CPU only. `--seconds` limits the run; the operators then come in a different order, so that an interrupted run has
some operators of every family.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import queue
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KNOWN = HERE / "known_failures.json"
WORKER = HERE / "opdb_worker.py"
CHECKS = ("forward", "vjp", "jvp", "vmap", "vmap_vjp")
TITLES = {"forward": "forward", "vjp": "VJP", "jvp": "JVP", "vmap": "vmap", "vmap_vjp": "vmap(VJP)"}
DTYPES = ("float32", "float64", "bfloat16", "complex64")
PACKAGES = ("torch", "jax", "jaxlib", "numpy", "t2j-core", "t2j-autodiff")

SLOW = {
    "cdist",
    "grid_sampler_2d",
    "grid_sampler_3d",
    "igamma",
    "igammac",
    "index_reduce:amax",
    "index_reduce:amin",
    "index_reduce:mean",
    "index_reduce:prod",
    "nn.functional.embedding_bag",
    "nn.functional.grid_sample",
    "special.zeta",
}
"""What takes a second and more for one sample, and is left out of the ordinary tests."""

START = 300.0  # seconds; the first read from a disk is slow
Key = tuple[str, str, str, int]
"""The key of a failure: operator, dtype, check and sample."""

# Classes of failures by "operator check: reason". The first match counts; a class that was written by hand stays.
CLASSES = (
    (r": the process died", "crash"),
    (r": the check took", "timeout"),
    (
        r"^(_?native_(batch|layer)_norm|_batch_norm_with_update)\S* forward",
        "torch bug: the meta kernel returns a different shape than the CPU kernel",
    ),
    (r"^tensor_split forward", "data-dependent shape"),
    (r"DataDependentShapeError|DynamicOutputShape|DataDependentOutput", "data-dependent shape"),
    (r": NonDifferentiableError", "no forward mode and no double backward in torch"),
    (r"^as_strided:partial_views", "reads the memory around a view, which a JAX array does not have"),
    (r": DTypeError: The dtype torch.complex32", "JAX has no such dtype"),
    (r"^nn.functional.layer_norm vmap_vjp", "rounding of torch's own batching rule, at a gradient that is zero"),
)
UNKNOWN = "unclassified"


@dataclass(frozen=True)
class Result:
    """The outcome of one check."""

    op: str
    dtype: str
    check: str
    sample: int
    outcome: str  # "passed", "failed" or "not counted"
    reason: str = ""
    seconds: float = 0.0
    not_compiled: str = ""  # why it was not, if it was to be

    @property
    def key(self) -> Key:
        return self.op, self.dtype, self.check, self.sample


# --- the process that runs operators -------------------------------------------------------------------------------


class Died(Exception):
    """The worker process ended, or did not respond in time."""


class OutOfTime(Exception):
    """The time of the whole run is over."""


@dataclass
class Worker:
    """A process that runs operators. It is started again when it dies."""

    dtype: str
    samples: int
    eager: bool = False
    compiles: bool = False
    patience: float = 300.0  # seconds for one check
    device: str = "cpu"
    end: float = math.inf  # end of the whole run, by the monotonic clock
    names: list[str] = field(default_factory=list)
    device_name: str = ""
    _process: subprocess.Popen[str] | None = None
    _pending: str = ""

    def start(self) -> None:
        """Start the process, and wait until it has loaded the operators."""
        self._log = tempfile.TemporaryFile(mode="w+", errors="replace")
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu" if self.device == "cpu" else f"{self.device},cpu",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # many processes share a GPU, each with two allocators
            "JAX_ENABLE_X64": str(int(self.dtype in ("float64", "complex128"))),
            "OMP_NUM_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(self.eager)),  # eager calls mostly compile
        }
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), self.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )
        self._pending = ""
        reply = self._reply(START)
        self.names, self.device_name = reply["names"], reply.get("device", "")

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._log.close()
            self._process = None

    def run(self, index: int) -> list[Result]:
        """All results of one operator. A check that kills the process is a failure, and the next sample follows.

        It also follows after a check that leaves the process without its GPU; that check keeps its outcome.
        """
        results: list[Result] = []
        first = 0
        while first < self.samples:
            at = {"sample": first, "check": "samples"}
            try:
                if self._process is None:
                    self.start()
                self._ask(index, first)
                while "done" not in (reply := self._reply()):
                    at = reply
                    if "outcome" in reply:
                        results.append(Result(self.names[index], self.dtype, **_fields(reply)))
                    if reply.get("lost"):
                        break
                else:
                    break
                self.stop()  # the process cannot use its GPU any more
                first = at["sample"] + 1
            except Died as death:
                self.stop()
                place = at["check"], at["sample"]
                results.append(Result(self.names[index], self.dtype, *place, "failed", str(death)))
                first = at["sample"] + 1
        return results

    def _ask(self, index: int, first: int) -> None:
        request = {"op": index, "dtype": self.dtype, "samples": self.samples, "first": first}
        request |= {"eager": self.eager, "compile": self.compiles}
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Died(self._epitaph()) from None

    def _reply(self, patience: float | None = None) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        patience = patience or self.patience
        fd, end = self._process.stdout.fileno(), min(time.monotonic() + patience, self.end)
        while "\n" not in self._pending:
            if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
                if end == self.end:
                    raise OutOfTime
                raise Died(f"the check took more than {patience:g} s")
            data = os.read(fd, 1 << 16)
            if not data:
                raise Died(self._epitaph())
            self._pending += data.decode()
        line, _, self._pending = self._pending.partition("\n")
        return json.loads(line)

    def _epitaph(self) -> str:
        assert self._process is not None
        code = self._process.wait(30)
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        told = (line for line in lines if not line.startswith("raise "))
        said = next((line for line in told if "rror" in line or "terminate" in line or "Check" in line), "")
        return f"the process died ({f'signal {-code}' if code < 0 else f'code {code}'}) {said}"[:300].strip()


def _fields(reply: dict[str, Any]) -> dict[str, Any]:
    return {
        name: reply[name]
        for name in ("check", "sample", "outcome", "reason", "seconds", "not_compiled")
        if name in reply
    }


def started(worker: Worker, jobs: int) -> list[Worker]:
    """Several processes like this one, which start at the same time."""
    workers = [replace(worker) for _ in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(Worker.start, workers))
    return workers


def run_all(workers: Sequence[Worker], indices: Sequence[int], progress: bool = True) -> list[Result]:
    """The results of many operators from several processes at once, without operators for which there was no time."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in indices:
        waiting.put(index)
    results: dict[int, list[Result]] = {}

    def serve(worker: Worker) -> None:
        try:
            while time.monotonic() < worker.end:
                index = waiting.get_nowait()
                results[index] = worker.run(index)
                if progress:
                    report_progress(len(results), len(indices), results[index])
        except (queue.Empty, OutOfTime):
            return
        finally:
            worker.stop()

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(serve, workers))
    return [result for index in sorted(results) for result in results[index]]


def report_progress(done: int, total: int, results: Iterable[Result]) -> None:
    """Yield failures as they come."""
    for r in results:
        if r.outcome == "failed":
            print(f"[{done}/{total}] {r.op} {r.check} #{r.sample}: {r.reason}", file=sys.stderr, flush=True)


# --- known failures ------------------------------------------------------------------------------------------------


def load_known() -> dict[str, Any]:
    """The list of known failures, with the versions to which it applies."""
    if not KNOWN.exists():
        return {"versions": {}, "failures": []}
    return json.loads(KNOWN.read_text())


def key_of(entry: dict[str, Any]) -> Key:
    """The key of a listed failure."""
    return entry["op"], entry["dtype"], entry["check"], entry["sample"]


def differences(results: Sequence[Result], known: dict[str, Any]) -> list[str]:
    """Unlisted failures, and listed ones that pass, as lines of text."""
    listed = {key_of(entry): entry for entry in known["failures"]}
    lines = []
    for r in results:
        text = f"{r.op} {r.dtype} {r.check} sample {r.sample}"
        if r.outcome == "failed" and r.key not in listed:
            lines.append(f"not listed: {text}: {r.reason}")
        if r.outcome == "passed" and r.key in listed:
            lines.append(f"listed, but passes: {text} ({listed[r.key]['class']})")
    return lines


def record(results: Sequence[Result], known: dict[str, Any]) -> dict[str, Any]:
    """The list in which the failures of this run replace older ones of the same checks."""
    old = {key_of(entry): entry for entry in known["failures"]}
    entries = dict(old)
    for r in results:
        entries.pop(r.key, None)
        if r.outcome == "failed":
            entries[r.key] = entry_of(r, old.get(r.key))
    order = sorted(entries, key=lambda key: (DTYPES.index(key[1]), key[0], key[3], key[2]))
    return {"versions": versions(), "failures": [entries[key] for key in order]}


def entry_of(r: Result, old: dict[str, Any] | None) -> dict[str, Any]:
    """The list entry of a failure. A class that was written by hand stays as long as the reason is the same."""
    found = next((name for pattern, name in CLASSES if re.search(pattern, f"{r.op} {r.check}: {r.reason}")), UNKNOWN)
    if old is not None and old["class"] != UNKNOWN and old["reason"][:40] == r.reason[:40]:
        found = old["class"]  # perhaps written by hand
    return {
        "op": r.op,
        "dtype": r.dtype,
        "check": r.check,
        "sample": r.sample,
        "class": found,
        "reason": r.reason,
    }


def write_known(known: dict[str, Any]) -> None:
    """Write one line for each failure, so that a diff shows changes."""
    lines = ",\n".join("  " + json.dumps(entry) for entry in known["failures"])
    KNOWN.write_text(f'{{\n "versions": {json.dumps(known["versions"])},\n "failures": [\n{lines}\n ]\n}}\n')


# --- report --------------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """The versions and the machine of the run."""
    return {name: metadata.version(name) for name in PACKAGES}


def commit() -> str:
    """The commit of the working tree, with a plus sign where the packages have changes."""
    if shutil.which("git") is None:
        return ""
    git = ["git", "-C", str(HERE)]
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
            "operators": len({r.op for r in results}),
            "operators_counted": len(counted),
            "operators_without_failure": len(counted - {r.op for r in failed}),
            "checks": {check: tally(results, check) for check in CHECKS if any(r.check == check for r in results)},
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
    runs = sorted(report.items(), key=lambda item: (item[1].get("device", ""), DTYPES.index(item[0].split()[0])))
    head = [""] + [f"{key} ({run['samples']} sample{'s' * (run['samples'] > 1)}, {run['path']})" for key, run in runs]
    rows = [head, ["---"] * len(head)]
    rows.append(["operators counted"] + [f"{run['operators_counted']} of {run['operators']}" for _, run in runs])
    for check in CHECKS:
        rows.append([TITLES[check]] + [share(run["checks"].get(check)) for _, run in runs])
    if any("not_compiled" in run for _, run in runs):
        counts = [len(run["not_compiled"]) if "not_compiled" in run else None for _, run in runs]
        rows.append(["checks that ran without being compiled"] + ["-" if n is None else str(n) for n in counts])
    rows.append(["operators without a failure"] + [str(run["operators_without_failure"]) for _, run in runs])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def share(counts: dict[str, int] | None) -> str:
    """Passed and counted checks, and the percentage, which is 100 % only if all passed."""
    if counts is None or not counts["run"]:
        return "-"
    percent = 100 * counts["passed"] / counts["run"]
    percent = percent if percent == 100 else min(percent, 99.9)
    return f"{counts['passed']} / {counts['run']} ({percent:.1f} %)"


def run_key(worker: Worker) -> str:
    """The key of a run in a results file: its dtype, and its device unless that is the CPU."""
    name = f"{worker.dtype} compiled" if worker.compiles else worker.dtype
    return name if worker.device == "cpu" else f"{name} on {worker.device_name}"


def save(path: Path, key: str, run: dict[str, Any]) -> dict[str, Any]:
    """Add a run to the results file, which also has other dtypes and devices."""
    report = json.loads(path.read_text()) if path.exists() else {}
    report[key] = run
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    return report


# --- program -------------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--output", type=Path, help="results file, to which this dtype is added")
    parser.add_argument("--check", action="store_true", help="fail where the list of known failures is wrong")
    parser.add_argument("--record", action="store_true", help="rewrite the list of known failures")
    parser.add_argument("--eager", action="store_true", help="without jax.jit")
    parser.add_argument("--compile", action="store_true", help="with `compile=True`: values and reverse mode")
    parser.add_argument("--only", default="", help="operators whose name matches this regular expression")
    parser.add_argument("--every", type=int, default=1, help="only every n-th operator")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after that long, with what is known then")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for one check")
    parser.add_argument("--slowest", type=int, default=0, help="print that many of the slowest operators")
    options = parser.parse_args()
    if options.device != "cpu" and (options.check or options.record):
        parser.error("the list of known failures is that of the CPU")
    return options


def worker_for(options: argparse.Namespace, start: float) -> Worker:
    """The process for the command line."""
    end = start + options.seconds
    kind = options.dtype, options.samples, options.eager, options.compile
    return Worker(*kind, options.patience, options.device, end)


def main() -> int:
    """Run, report and compare."""
    options = arguments()
    start = time.monotonic()
    workers = started(worker_for(options, start), options.jobs)
    worker = workers[0]
    indices = [i for i, name in enumerate(worker.names) if re.search(options.only, name)][:: options.every]
    if options.seconds < math.inf:
        random.Random(0).shuffle(indices)
    results = run_all(workers, indices)
    known = load_known() if options.device == "cpu" else {"failures": []}
    lines = differences(results, known)
    if options.record:
        known = record(results, known)
        write_known(known)
    run = summary(results, known, worker, time.monotonic() - start)
    if options.seconds < math.inf:
        run["not_reached"] = len(indices) - run["operators"]
    if options.every > 1:
        run["every"] = options.every
    key = run_key(worker)
    report = save(options.output, key, run) if options.output else {key: run}
    print(table(report))
    shown = ("not_compiled", "not_counted", "failures_by_class", "seconds", "not_reached")
    print(json.dumps({name: run[name] for name in shown if name in run}, indent=1))
    for op, seconds in slowest(results)[: options.slowest]:
        print(f"{seconds:8.2f} s  {op}")
    if options.check:
        print("\n".join(lines) or "The list of known failures is right.")
    return int(options.check and bool(lines))


def slowest(results: Iterable[Result]) -> list[tuple[str, float]]:
    """Operators, sorted by the time of their checks."""
    seconds: collections.Counter[str] = collections.Counter()
    for r in results:
        seconds[r.op] += r.seconds
    return seconds.most_common()


if __name__ == "__main__":
    sys.exit(main())
