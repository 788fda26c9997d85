"""Run JAX's own tests with `sin`, `exp`, `dot` and others replaced by torch functions.

`python tests/jax_suite/jax_suite.py --source CHECKOUT [--check] [--output FILE.json]`

The tests come from a checkout of JAX at the version that is installed. Each module runs in its own process, in which
`jax_suite_plugin.py` replaces the functions of `torch_functions.py`. What fails is run again without replacements; only
what passes then counts as a failure. `exceptions.json` lists the known ones with the reason of each. With `--check` the
program fails if a failure is not listed, or if a listed one passes.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from jax_suite_plugin import lines_of
from torch_functions import TORCH

HERE = Path(__file__).parent
EXCEPTIONS = HERE / "exceptions.json"
UNKNOWN = "unclassified"
PACKAGES = ("torch", "jax", "jaxlib", "numpy", "t2j-core", "t2j-autodiff")
MODULES = (
    *("api_test", "custom_api_test", "lax_control_flow_test", "batching_test"),
    *("custom_linear_solve_test", "mutable_array_test", "python_callback_test", "custom_root_test"),
    *("checkify_test", "shard_map_test", "pmap_test", "lax_numpy_vectorize_test", "lax_autodiff_test"),
    *("ode_test", "debug_nans_test", "debugging_primitives_test", "core_test"),
)
ENVIRONMENT = {
    "NPROC": "64",  # 8 virtual devices need more threads than a small machine has cores
    "OMP_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "PYTHONDONTWRITEBYTECODE": "1",  # the checkout stays as it is
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # the tests compile thousands of small programs
}
PYTEST = (
    *("-q", "--tb=short", "--assert=plain", "-p", "no:cacheprovider", "-p", "jax_suite_plugin"),
    *("-p", "no:faulthandler"),  # the plugin uses it
    *("-c", os.devnull, "--noconftest"),  # not the checkout's
)
TIME = 1200.0  # seconds for one test, with which it hangs on the slowest machine


@dataclass(frozen=True)
class Result:
    """How one test ended."""

    test: str  # module::Class::test
    outcome: str  # "passed", "failed", "skipped", "not run", or "not counted": it fails without replacements too
    reason: str = ""
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def uses_torch(self) -> bool:
        return TORCH in self.calls

    @property
    def module(self) -> str:
        return self.test.partition("::")[0]


# --- processes -----------------------------------------------------------------------------------------------------


def start_pytest(arguments: Sequence[str], output: Path) -> int:
    """Run pytest in a process, and return how it ended. `-P` keeps the checkout's own `jax` off the path."""
    path = os.pathsep.join(filter(None, [str(HERE.absolute()), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "pytest", *arguments]
    with output.open("a") as stream:
        return subprocess.run(
            command,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": path},
            cwd=output.parent,
            stdout=stream,
            stderr=stream,
            check=False,
        ).returncode


@dataclass(frozen=True)
class Suite:
    """The tests of a checkout, and where processes write what happened."""

    source: Path
    logs: Path
    seconds: float = TIME
    start: Callable[[Sequence[str], Path], int] = start_pytest

    def run(self, module: str) -> list[Result]:
        """All results of a module. Its failures are run again without replacements."""
        results = self._results(module, replaced=True)
        failed = [r.test for r in results if r.outcome == "failed"]
        if failed:
            again = {r.test: r.outcome for r in self._results(module, failed, replaced=False)}
            wrong_anyway = {test for test in failed if again.get(test) != "passed"}
            results = [replace(r, outcome="not counted") if r.test in wrong_anyway else r for r in results]
        return results

    def _results(self, module: str, tests: Sequence[str] = (), *, replaced: bool) -> list[Result]:
        log = self.logs / f"{module}{'' if replaced else '.real'}.jsonl"
        while not self._finished(module, tests, log, replaced):
            pass
        ended = [line for line in lines_of(log) if "outcome" in line]
        return [Result(f"{module}::{line['test']}", line["outcome"], line["reason"], line["calls"]) for line in ended]

    def _finished(self, module: str, tests: Sequence[str], log: Path, replaced: bool) -> bool:
        """Run a process over the tests that the log does not have. A test that ends the process has failed."""
        file = self.source / "tests" / f"{module}.py"
        items = [f"{file}::{test.partition('::')[2]}" for test in tests] or [str(file)]
        options = ("--log", str(log), "--seconds", str(self.seconds), *(("--replace",) if replaced else ()))
        code = self.start([*PYTEST, f"--rootdir={file.parent}", *options, *items], log.with_suffix(".txt"))
        lines = lines_of(log)
        if lines and "outcome" not in lines[-1]:
            return self._bury(log, lines[-1]["test"], code)
        if code not in (0, 1, 5):  # passed, failed, no test left
            raise RuntimeError(f"pytest failed with code {code}; see {log.with_suffix('.txt')}")
        return True

    def _bury(self, log: Path, test: str, code: int) -> bool:
        """Record that a test ended the process, and go on with the next one."""
        reason = f"the process died ({f'signal {-code}' if code < 0 else f'code {code}'})"
        if "Timeout (" in log.with_suffix(".txt").read_text(errors="replace")[-100_000:]:
            reason += f", perhaps after {self.seconds:g} s"
        line = {"test": test, "outcome": "failed", "reason": reason, "calls": {TORCH: 0}}
        with log.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        return False


def checked_source(source: Path) -> Path:
    """A checkout of JAX, if it has the version that is installed."""
    file = source / "jax" / "version.py"
    found = re.search(r'^_version = "(.*)"', file.read_text() if file.exists() else "", flags=re.M)
    installed = metadata.version("jax")
    if found is None or found[1] != installed or not (source / "tests").is_dir():
        got = found[1] if found else "no version"
        raise SystemExit(f"The source must be a checkout of JAX.\nExpected: {installed}\nGot: {got}, in {source}")
    return source.absolute()


# --- exceptions ----------------------------------------------------------------------------------------------------


def load_exceptions() -> dict[str, Any]:
    """The list of exceptions, with the versions to which it applies."""
    if not EXCEPTIONS.exists():
        return {"versions": {}, "reasons": {}, "exceptions": []}
    return json.loads(EXCEPTIONS.read_text())


def differences(results: Iterable[Result], listed: dict[str, Any]) -> list[str]:
    """Unlisted failures, and listed tests that pass, as lines of text."""
    reasons = {entry["test"]: entry["reason"] for entry in listed["exceptions"]}
    lines = []
    for r in results:
        if r.outcome == "failed" and r.test not in reasons:
            lines.append(f"not listed: {r.test}: {r.reason}")
        if r.outcome == "passed" and r.test in reasons:
            lines.append(f"listed, but passes: {r.test} ({reasons[r.test]})")
    return lines


def record(results: Sequence[Result], listed: dict[str, Any]) -> dict[str, Any]:
    """The list in which the failures of this run replace older ones of the same tests. Reasons are written by hand."""
    entries = {entry["test"]: entry for entry in listed["exceptions"]}
    reasons = {test: entry["reason"] for test, entry in entries.items()}
    for r in results:
        entries.pop(r.test, None)
        if r.outcome == "failed":
            entries[r.test] = {"test": r.test, "reason": reasons.get(r.test, UNKNOWN), "error": r.reason[:120]}
    return {**listed, "versions": versions(), "exceptions": [entries[test] for test in sorted(entries)]}


def write_exceptions(listed: dict[str, Any]) -> None:
    """Write one line for each test, so that a diff shows changes."""
    head = json.dumps({name: listed[name] for name in ("versions", "reasons")}, indent=1)[1:-2]
    lines = ",\n".join("  " + json.dumps(entry) for entry in listed["exceptions"])
    EXCEPTIONS.write_text(f'{{{head},\n "exceptions": [\n{lines}\n ]\n}}\n')


# --- report --------------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """The versions of the run."""
    return {name: metadata.version(name) for name in PACKAGES}


def counts(results: Sequence[Result]) -> dict[str, int]:
    """How tests ended. Only those that call torch, or fail without reason, judge t2j: they have passed or failed."""
    tally = collections.Counter(r.outcome for r in results)
    without = sum(r.outcome == "passed" and not r.uses_torch for r in results)  # those that run
    calls = sum((collections.Counter(r.calls) for r in results), collections.Counter())
    return {
        "tests": len(results),
        "skipped": tally["skipped"],
        "fail_without_torch": tally["not counted"],
        "never_call_torch": tally["not run"] + without,
        "passed": tally["passed"] - without,
        "failed": tally["failed"],
        "torch_calls": calls[TORCH],
        "other_calls": calls.total() - calls[TORCH],
    }


def summary(results: Sequence[Result], listed: dict[str, Any]) -> dict[str, Any]:
    """The counts of a run."""
    reasons = {entry["test"]: entry["reason"] for entry in listed["exceptions"]}
    failed = [reasons.get(r.test, UNKNOWN) for r in results if r.outcome == "failed"]
    other = sum((collections.Counter(r.calls) for r in results), collections.Counter())
    del other[TORCH]
    names = dict.fromkeys(r.module for r in results)
    return {
        "all": counts(results),
        "modules": {name: counts([r for r in results if r.module == name]) for name in names},
        "failures_by_reason": dict(collections.Counter(failed).most_common()),
        "calls_that_torch_cannot_take": dict(other.most_common()),
        "versions": versions(),
    }


def table(run: dict[str, Any]) -> str:
    """The counts of each module as a Markdown table."""
    names = list(run["all"])
    rows = [["", *(name.replace("_", " ") for name in names)], ["---"] * (len(names) + 1)]
    for module, of in [*run["modules"].items(), ("all", run["all"])]:
        rows.append([module, *(str(of[name]) for name in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# --- program -------------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=MODULES, help="test modules, without `.py`")
    parser.add_argument("--source", type=Path, required=True, help="a checkout of JAX at the installed version")
    parser.add_argument("--logs", type=Path, help="where outcomes and outputs go; what is there already is not run")
    parser.add_argument("--jobs", type=int, default=1, help="how many modules run at once")
    parser.add_argument("--output", type=Path, help="results file")
    parser.add_argument("--check", action="store_true", help="fail where the list of exceptions is wrong")
    parser.add_argument("--record", action="store_true", help="rewrite the list of exceptions")
    return parser.parse_args()


def main() -> int:
    """Run, report and compare."""
    options = arguments()
    logs = (options.logs or Path(tempfile.mkdtemp(prefix="jax_suite_"))).absolute()
    logs.mkdir(parents=True, exist_ok=True)
    suite = Suite(checked_source(options.source), logs)
    with ThreadPoolExecutor(options.jobs) as pool:
        results = [result for found in pool.map(suite.run, options.modules) for result in found]
    listed = load_exceptions()
    lines = differences(results, listed)
    if options.record:
        listed = record(results, listed)
        write_exceptions(listed)
    run = summary(results, listed)
    if options.output:
        options.output.write_text(json.dumps(run, indent=1) + "\n")
    print(table(run))
    print(json.dumps({name: run[name] for name in run if name not in ("all", "modules")}, indent=1))
    if options.check:
        print("\n".join(lines) or "The list of exceptions is right.")
    return int(options.check and bool(lines))


if __name__ == "__main__":
    sys.exit(main())
