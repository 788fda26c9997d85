"""The results files, and how their numbers are written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

COUNTS = {"opdb", "module_db", "mutants", "jax_suite", "corpus", "soak"}  # files that count tests, and have no rows
BUSY = 2.0  # a load above which absolute times are too long; ratios are within a round


class Quartiles(NamedTuple):
    """Median and inter-quartile range."""

    median: float
    low: float
    high: float


class Row(NamedTuple):
    """One line of a results file."""

    question: str
    name: str
    unit: str
    value: Quartiles
    ratio: Quartiles | None
    reference: str | None
    target: float | None
    verdict: str | None
    at: float | None


class Results(Mapping[str, list[Row]]):
    """The rows of every results file of a folder, by the name of its script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}

    def __getitem__(self, name: str) -> list[Row]:
        return [_row(row) for row in self._file(name)["rows"]]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.stem for path in self.folder.glob("*.json") if path.stem not in COUNTS))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = json.loads((self.folder / f"{name}.json").read_text())
        return self._files[name]

    def environment(self, name: str) -> Any:
        """The machine and the versions of the measurement."""
        return self._file(name)["environment"]

    def skipped(self, name: str) -> dict[str, str]:
        """The contestants that were not measured, each with the reason."""
        found: dict[str, str] = self._file(name)["skipped"]
        return found


def _row(found: dict[str, Any]) -> Row:
    ratio = found.get("ratio")
    rest = (found.get(key) for key in ("reference", "target", "verdict", "at"))
    value = Quartiles(**found["value"])
    return Row(found["question"], found["name"], found["unit"], value, Quartiles(**ratio) if ratio else None, *rest)


def measured(environment: Any) -> str:
    """The date, the machine and the versions, and the load if the machine was busy."""
    versions = {key: version for key, version in environment["versions"].items() if key in ("torch", "jax") and version}
    named = ", ".join(f"{key} {version}" for key, version in versions.items())
    machine = environment["machine"].get("gpu", environment["machine"]["cpu"])
    load = (environment.get("load_average") or [0.0])[0]
    busy = f", on a busy machine (load {number(load)})" if load > BUSY else ""
    return f"<sub>{environment['date']}, {machine}, {named}, Python {environment['python']}{busy}</sub>"


def number(value: float) -> str:
    """Format a number with three digits and without an exponent."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:g}"


def in_ms(row: Row) -> str:
    """The time of a row in ms, and its ratio if it has one."""
    ratio = f" ({number(row.ratio.median)}×)" if row.ratio else ""
    return f"{number(row.value.median / 1000)} ms{ratio}"


def found_row(results: Results, script: str, name: str, question: str = "", at: float | None = None) -> Row:
    """The first row of this name whose question begins so."""
    return next(
        row
        for row in results[script]
        if row.name == name and row.question.startswith(question) and (at is None or row.at == at)
    )
