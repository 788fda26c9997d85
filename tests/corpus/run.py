"""Run real models and functions of other packages through t2j, and compare them with native torch, or with jnp.

`python tests/corpus/run.py [PACKAGE ...] [--only PATTERN] [--jobs 2] [--check] [--record] [--output FILE.json]`

Each case runs in a process of its own (`harness.py`). `known_failures.json` lists the known failures. With `--check`
the program fails if a failure is not listed, or a listed one passes. `--output` also writes the page `docs/corpus.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import page
import results
from corpus_case import cases_of, packages
from harness import CHECKS, LIMIT
from results import Result

HARNESS = Path(__file__).with_name("harness.py")
PAGE = Path(__file__).parents[2] / "docs" / "corpus.md"
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "HF_HUB_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # each package starts a process, which would compile torch and JAX to bytecode
}


def run_package(package: str, names: Sequence[str]) -> dict[str, list[Result]]:
    """The results of cases of one package. A check that kills its process is a failure, and the last of its case."""
    found: dict[str, list[Result]] = {}
    case, check = "", CHECKS[0]
    with tempfile.TemporaryFile(mode="w+", errors="replace") as log:
        command = [sys.executable, str(HARNESS), package, *names]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=os.environ | ENVIRONMENT, text=True)
        assert process.stdout is not None
        for reply in map(json.loads, process.stdout):
            if "check" in reply:
                check = reply["check"]
                found[case] += [Result(f"{package}/{case}", **reply)] if len(reply) > 1 else []
            elif "code" in reply:
                found[case] += died(f"{package}/{case}", check, reply["code"], log)
                report_progress(found[case])
            else:
                case, check = reply["case"], CHECKS[0]
                found[case] = []
        code = process.wait()  # not 0 if the package cannot be imported
        return {name: found.get(name) or died(f"{package}/{name}", CHECKS[0], code, log) for name in names}


def died(case: str, check: str, code: int, log: IO[str]) -> list[Result]:
    """A failure if a process has not ended as it should, with the last line that it wrote."""
    if code == 0:
        return []
    log.seek(0)
    last = next((line.strip() for line in reversed(log.readlines()) if line.strip()), "")
    reason = f"the check took more than {LIMIT} s" if code == -signal.SIGALRM else f"the process died ({code}): {last}"
    return [Result(case, check, "failed", reason[:300])]


def report_progress(found: Sequence[Result]) -> None:
    """Say how a case went."""
    counted = [r for r in found if r.outcome in ("passed", "failed")]
    passed = sum(r.outcome == "passed" for r in counted)
    ratio = next((f", step {r.ratio:.2f}" for r in found if r.ratio), "")
    lines = [f"{found[0].case}: {passed} of {len(counted)}{ratio}, {sum(r.seconds for r in found):.0f} s"]
    lines += [f"    {r.check} {r.outcome}: {r.reason}" for r in found if r.outcome in ("failed", "not counted")]
    print("\n".join(lines), file=sys.stderr, flush=True)


def run_all(cases: Mapping[str, Sequence[str]], jobs: int) -> list[Result]:
    """The results of all cases. Jobs take packages, the largest first."""
    order = sorted(cases, key=lambda package: -len(cases[package]))
    with ThreadPoolExecutor(jobs) as pool:
        found = dict(zip(order, pool.map(lambda package: run_package(package, cases[package]), order), strict=True))
    return [r for package in cases for name in cases[package] for r in found[package][name]]


def selected(names: Sequence[str], only: str) -> dict[str, list[str]]:
    """The names of cases of some packages, or of all, that match a regular expression."""
    return {
        package: [case.name for case in cases_of(package) if re.search(only, case.name)]
        for package in names or packages()
    }


def main() -> int:
    """Run, report and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("packages", nargs="*", help="the packages whose cases are run; all by default")
    parser.add_argument("--only", default="", help="cases whose name matches this regular expression")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="fail where the list of known failures is wrong")
    parser.add_argument("--record", action="store_true", help="rewrite the list of known failures")
    parser.add_argument("--output", type=Path, help="results file, to which these cases are added")
    options = parser.parse_args()
    found = run_all(selected(options.packages, options.only), options.jobs)
    known = results.load_known()
    lines = results.differences(found, known)
    if options.record:
        known = results.record(found, known)
        results.write_known(known)
    report = results.report(found, known)
    if options.output:
        report = results.save(options.output, report)
        PAGE.write_text(page.rendered(report))
    print(page.totals(report))
    if options.check:
        print("\n".join(lines) or "The list of known failures is right.")
    return int(options.check and bool(lines))


if __name__ == "__main__":
    sys.exit(main())
