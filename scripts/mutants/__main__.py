"""Whether the tests see faults: `python scripts/mutants [--only NAME ...] [--jobs N] [--output FILE]`.

Each mutant is planted by itself into a copy of the code, and its tests run there. A mutant is caught if one of them
fails, crashes or hangs. One that survives is a hole in the tests. Fails if one survives, or if one is caught that is
said to be equivalent to the code as it is.

It needs the packages' test dependencies, pybind11 and a C++ compiler.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from _copies import make_copy, make_first_copy
from _mutants import Mutant, MutantError, read_mutants
from _tests import NoTestsError, by_package, failure

Verdicts = dict[str, str | None]
"""By the name of a mutant how its tests failed; None if they passed."""


def main() -> None:
    """Try the chosen mutants, and write the score."""
    parser = argparse.ArgumentParser(description="Whether the tests see planted faults.")
    parser.add_argument("--only", nargs="*", help="only mutants whose name or area (name of the file) has one of these")
    parser.add_argument("--jobs", type=int, default=1, help="how many are tried at a time")
    parser.add_argument("--limit", type=float, default=240, help="seconds for the tests of one mutant")
    parser.add_argument("--output", type=Path, help="a JSON file for the score; with `--only` its other lines stay")
    options = parser.parse_args()
    try:
        mutants = chosen(read_mutants(), options.only)
        verdicts = try_all(mutants, options.jobs, options.limit)
    except (MutantError, NoTestsError) as error:
        sys.exit(str(error))
    if options.output is not None:
        record(options.output, mutants, verdicts)
    sys.exit(report(mutants, verdicts))


def chosen(mutants: Sequence[Mutant], only: Sequence[str] | None) -> list[Mutant]:
    """The mutants that were asked for."""
    found = [m for m in mutants if only is None or any(part in f"{m.area}/{m.name}" for part in only)]
    if not found:
        raise MutantError(f"No mutant has one of these in its name: {', '.join(only or ())}.")
    return found


def try_all(mutants: Sequence[Mutant], jobs: int, limit: float) -> Verdicts:
    """How the tests of each mutant fail. Raises if they fail without a fault."""
    pools = ThreadPoolExecutor(jobs), ThreadPoolExecutor(jobs)
    with tempfile.TemporaryDirectory() as scratch, pools[0] as trying, pools[1] as compiling:
        folder = Path(scratch)
        first = folder / "first"
        make_first_copy(first, compiling)
        tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
        show(f"{len(tests)} tests without a fault ...")
        without_fault = functools.partial(failure, first, limit=limit * len(mutants))
        if found := list(filter(None, trying.map(without_fault, by_package(tests)))):
            raise NoTestsError(f"The tests fail without a fault: {'; '.join(found)}.")
        attempt = functools.partial(try_one, folder, first, compiling, limit)
        return dict(zip([mutant.name for mutant in mutants], trying.map(attempt, mutants), strict=True))


def try_one(folder: Path, first: Path, compiling: ThreadPoolExecutor, limit: float, mutant: Mutant) -> str | None:
    """How the tests of a mutant fail; None if they pass."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as own:
        copy = Path(own, "copy")
        make_copy(first, copy, mutant, compiling)
        found = failure(copy, mutant.tests, limit)
    show(f"{time.monotonic() - begin:5.0f} s  {outcome(mutant, found):10}  {mutant.name}  {found or ''}")
    return found


_showing = threading.Lock()


def show(line: str) -> None:
    """Print a line at once."""
    with _showing:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def outcome(mutant: Mutant, found: str | None) -> str:
    """What became of a mutant whose tests fail in this way."""
    if found is not None:
        return "caught"
    return "equivalent" if mutant.equivalent else "survived"


def record(path: Path, mutants: Sequence[Mutant], verdicts: Verdicts) -> None:
    """Write what became of each mutant; of those that were not tried now, what became of them before."""
    before = json.loads(path.read_text())["outcomes"] if path.exists() else {}
    now = {mutant.name: outcome(mutant, verdicts[mutant.name]) for mutant in mutants}
    every = read_mutants()
    outcomes = {mutant.name: now.get(mutant.name, before.get(mutant.name, "not tried")) for mutant in every}
    areas: dict[str, collections.Counter[str]] = {}
    for mutant in every:
        areas.setdefault(mutant.area, collections.Counter())[outcomes[mutant.name]] += 1
    versions = {"python": ".".join(map(str, sys.version_info[:3])), "jax": version("jax"), "torch": version("torch")}
    counts = collections.Counter(outcomes.values())
    content = {"mutants": len(every), **counts, "areas": areas, "outcomes": outcomes, "versions": versions}
    path.write_text(f"{json.dumps(content, indent=1)}\n")


def report(mutants: Sequence[Mutant], verdicts: Verdicts) -> bool:
    """Print what is to be mended. Whether something is."""
    survivors = [mutant for mutant in mutants if outcome(mutant, verdicts[mutant.name]) == "survived"]
    visible = [mutant for mutant in mutants if mutant.equivalent and verdicts[mutant.name] is not None]
    for mutant in survivors:
        show(f"survived: {mutant.name} ({mutant.area}.toml): {mutant.why}")
    for mutant in visible:
        show(f"caught, though it is said to be equivalent: {mutant.name} ({mutant.area}.toml)")
    counts = collections.Counter(outcome(mutant, verdicts[mutant.name]) for mutant in mutants)
    show(f"{len(mutants)} mutants: {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))}")
    return bool(survivors or visible)


if __name__ == "__main__":
    main()
