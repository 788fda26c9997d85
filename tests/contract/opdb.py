"""Count the PyTorch operators and modules that work through t2j, on the samples of PyTorch's own tests.

`python tests/contract/opdb.py --dtype float32 --samples 3 --output FILE.json [--check]`

For every operator and each of its first samples, it checks the outputs, reverse mode, forward mode, a batch, and a
batch of reverse mode, and compares each with native torch (`case.py`). `known_failures.json` lists the known failures.
With `--check` the program fails if a failure is not listed, or a listed one passes.

`--suite second` checks second derivatives (`second_derivatives.py`). `--suite train` and `--suite eval` check the
modules of PyTorch's module database in that mode (`module_samples.py`).

`--device cuda` does the same on a GPU, with samples and native torch on the GPU. The list of known failures applies to
the CPU only. `--seconds` limits the run; the operators then come in a different order, so that an interrupted run has
some operators of every family. `--journal` keeps results, so that the next run with this journal goes on from there:
`--part 1/4`, `2/4` and so on with one journal are the whole.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import random
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from journal import Journal
from known import DTYPES, differences, load_known, record, write_known
from report import run_key, save, summary, table
from runner import SUITES, Result, Worker, run_all, started


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--suite", choices=sorted(SUITES), default="operators")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--output", type=Path, help="results file, to which this dtype is added")
    parser.add_argument("--check", action="store_true", help="fail where the list of known failures is wrong")
    parser.add_argument("--record", action="store_true", help="rewrite the list of known failures")
    parser.add_argument("--eager", action="store_true", help="without jax.jit")
    parser.add_argument("--compile", action="store_true", help="with `compile=True`: all but forward mode")
    parser.add_argument("--only", default="", help="operators whose name matches this regular expression")
    parser.add_argument("--every", type=int, default=1, help="only every n-th operator")
    parser.add_argument("--part", type=part, default=(1, 1), help="only a part of the operators, such as 1/4")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after that long, with what is known then")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for one check")
    parser.add_argument("--journal", type=Path, help="a file of results that are known, to which new ones are added")
    parser.add_argument("--slowest", type=int, default=0, help="print that many of the slowest operators")
    options = parser.parse_args()
    if options.device != "cpu" and (options.check or options.record):
        parser.error("the list of known failures is that of the CPU")
    return options


def part(text: str) -> tuple[int, int]:
    """The number of a part, and how many there are."""
    number, _, parts = text.partition("/")
    if not 1 <= int(number) <= int(parts):
        raise ValueError(text)
    return int(number), int(parts)


def worker_for(options: argparse.Namespace, start: float) -> Worker:
    """The process for the command line."""
    return Worker(
        options.dtype,
        options.samples,
        options.eager,
        options.compile,
        options.patience,
        options.device,
        end=start + options.seconds,
        suite="float8" if options.dtype.startswith("float8") else options.suite,
    )


def chosen(names: list[str], options: argparse.Namespace) -> list[int]:
    """The operators to run, in their order."""
    indices = [i for i, name in enumerate(names) if re.search(options.only, name)][:: options.every]
    number, parts = options.part
    indices = indices[number - 1 :: parts]
    if options.seconds < math.inf:
        random.Random(0).shuffle(indices)
    return indices


def main() -> int:
    """Run, report and compare."""
    options = arguments()
    start = time.monotonic()
    workers = started(worker_for(options, start), options.jobs)
    worker = workers[0]
    indices = chosen(worker.names, options)
    journal = Journal(options.journal, worker)
    left = [i for i in indices if worker.names[i] not in journal.done]
    if journal.done:
        print(f"{len(journal.done)} {worker.kind} are in {options.journal}; {len(left)} are left.", file=sys.stderr)
    results = journal.results + run_all(workers, left, lambda found: (journal.add(found), report_failures(found)))
    known = load_known() if options.device == "cpu" else {"failures": []}
    lines = differences(results, known)
    if options.record:
        known = record(results, known)
        write_known(known)
    run = summary(results, known, worker, time.monotonic() - start)
    if options.seconds < math.inf:
        run["not_reached"] = len(indices) - run[worker.kind]
    if options.every > 1:
        run["every"] = options.every
    if options.part[1] > 1:
        run["not_reached"] = len(worker.names) - run[worker.kind]
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


def report_failures(results: Iterable[Result]) -> None:
    """Print failures as they come."""
    for r in results:
        if r.outcome == "failed":
            print(f"{r.op} {r.check} #{r.sample}: {r.reason}", file=sys.stderr, flush=True)


def slowest(results: Iterable[Result]) -> list[tuple[str, float]]:
    """Operators, sorted by the time of their checks."""
    seconds: collections.Counter[str] = collections.Counter()
    for r in results:
        seconds[r.op] += r.seconds
    return seconds.most_common()


if __name__ == "__main__":
    sys.exit(main())
