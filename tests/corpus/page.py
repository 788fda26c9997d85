"""The page `docs/corpus.md`, made from the results."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Mapping
from typing import Any

SLOW = 1.5  # ratio to native torch above which a step is listed

HEAD = """<!-- Made by `nox -s corpus`: change tests/corpus/page.py instead. -->

# Other packages' code

Real models and functions of other packages run through t2j, with random weights and small sizes, and are compared
with native torch. Those of JAX libraries call a torch function inside a solver, a sampler or an optimizer, and are
compared with the same function in `jnp`. The checks of each case are the values, a second call and an eager one,
gradients of parameters and inputs, a batch, a batch of gradients, forward mode, and a Hessian-vector product; then that
no module and no argument has changed, and that no warning and no output is stray. A check that the judge itself cannot
do (no derivative in torch, random numbers) is not counted. `tests/corpus/test_torch_defects.py` shows what torch itself
gets wrong.

`nox -s corpus` repeats the run, and fails where a failure is not listed in `tests/corpus/known_failures.json` or a
listed one passes.
"""


def totals(report: Mapping[str, Any]) -> str:
    """The counts of all cases in one sentence."""
    cases = report["cases"].values()
    passed, run = sum(c["passed"] for c in cases), sum(c["run"] for c in cases)
    whole = sum(c["passed"] == c["run"] for c in cases)
    return f"{passed} of {run} checks pass, and {whole} of {len(cases)} cases have no failure."


def rendered(report: Mapping[str, Any]) -> str:
    """The page."""
    parts = [HEAD, totals(report), "", packages(report), "", "## Failures", "", failures(report)]
    parts += ["", "## Slow steps", "", slow(report), "", "## Not counted", "", not_counted(report)]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join([*parts, "", "## Versions", "", f"{versions}.", ""])


def packages(report: Mapping[str, Any]) -> str:
    """One row for each package."""
    groups: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for name, case in report["cases"].items():
        groups[name.partition("/")[0]].append(case)
    rows = ["| package | cases | checks passed | median ratio of a step |", "|---|---|---|---|"]
    for name, cases in groups.items():
        ratios = [case["ratio"] for case in cases if "ratio" in case]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
        counts = f"{sum(c['passed'] for c in cases)} of {sum(c['run'] for c in cases)}"
        rows.append(f"| {name} | {len(cases)} | {counts} | {ratio} |")
    return "\n".join(rows)


def failures(report: Mapping[str, Any]) -> str:
    """One row for each failed check."""
    rows = [
        f"| {name} | {check} | {failure['class']} |"
        for name, case in report["cases"].items()
        for check, failure in case["failed"].items()
    ]
    return "\n".join(["| case | check | why |", "|---|---|---|", *rows]) if rows else "None."


def slow(report: Mapping[str, Any]) -> str:
    """The cases whose step takes much longer than native torch's."""
    ratios = {name: case for name, case in report["cases"].items() if case.get("ratio", 0.0) > SLOW}
    measured = sum("ratio" in case for case in report["cases"].values())
    text = (
        f"A step is the value and its gradient with respect to parameters and inputs. Of {measured} steps these take "
        f"more than {SLOW} times as long as in native torch: one thread, medians of interleaved runs, while other "
        "work ran on the machine. The models are tiny, so the cost of a call weighs more than in practice."
    )
    rows = [
        f"| {name} | {case['ratio']:.2f} | {case['native_ms']:.2f} | {case['t2j_ms']:.2f} |"
        for name, case in sorted(ratios.items(), key=lambda item: -item[1]["ratio"])
    ]
    return "\n".join([text, "", "| case | ratio | torch, ms | t2j, ms |", "|---|---|---|---|", *rows])


def not_counted(report: Mapping[str, Any]) -> str:
    """The reasons of the judges, with the number of checks."""
    reasons: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for case in report["cases"].values():
        for check, reason in case["not_counted"].items():
            reasons[reason][check] += 1
    rows = [
        f"| {_cell(reason)} | {', '.join(f'{check} ({n})' for check, n in counts.items())} |"
        for reason, counts in sorted(reasons.items(), key=lambda item: -item[1].total())
    ]
    return "\n".join(["| reason | checks |", "|---|---|", *rows]) if rows else "Nothing."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*").replace("_", "\\_")
