"""The tables of the committed results in the docs, each between two comments."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from report import table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "pytorch_tests.md"
_PLACE = re.compile(
    r"(<!-- results: (?P<file>\w+), (?P<part>[\w ]+) -->\n).*?(?P<end><!-- end of results -->)", flags=re.S
)
PARTS = {
    "first derivatives": lambda key: key in ("float32", "float64", "bfloat16", "complex64"),
    "second derivatives": lambda key: "second" in key,
    "compiled": lambda key: "compiled" in key,
    "float8": lambda key: key.startswith("float8"),
    "modules": lambda key: True,
}
"""Which runs of a results file a table has."""


def filled(text: str) -> str:
    """The page with the tables of the committed results."""
    return _PLACE.sub(lambda match: f"{match[1]}{_block(match['file'], match['part'])}\n{match['end']}", text)


def _block(file: str, part: str) -> str:
    report = json.loads((ROOT / "benchmarks" / "results" / f"{file}.json").read_text())
    chosen = {key: run for key, run in report.items() if PARTS[part](key) and "device" not in run}
    return "\n".join([table(chosen), "", *failures(chosen)])


def failures(runs: dict[str, Any]) -> list[str]:
    """The classes of the failures, with the number of checks of all runs."""
    counts: dict[str, int] = {}
    for run in runs.values():
        for name, count in run["failures_by_class"].items():
            counts[name] = counts.get(name, 0) + count
    return [
        f"- {count} check{'s' * (count > 1)} failed: {name}"
        for name, count in sorted(counts.items(), key=lambda item: -item[1])
    ]


def main() -> None:
    """Write the page again."""
    PAGE.write_text(filled(PAGE.read_text()))


if __name__ == "__main__":
    main()
