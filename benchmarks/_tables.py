"""Read results files, and write them as Markdown tables between two comments in the READMEs.

`<!-- results: size -->` begins the table of `results/size.json`, and `<!-- end of results -->` ends it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = tuple(ROOT / page for page in ("README.md", "benchmarks/README.md", "docs/large_scale.md", "docs/gpus.md"))
_PLACE = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n).*?(<!-- end of results -->)", flags=re.S)


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
        return iter(sorted(path.stem for path in self.folder.glob("*.json") if path.stem != "opdb"))

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


def fill(results: Results) -> list[Path]:
    """Write the tables again, and return the pages that changed."""
    changed = []
    for page in PAGES:
        text = page.read_text()
        new = filled(text, results)
        if new != text:
            page.write_text(new)
            changed.append(page)
    return changed


def filled(text: str, results: Results) -> str:
    """Return a page with the tables of these results."""
    return _PLACE.sub(lambda match: f"{match[1]}{_block(match['name'], results)}{match[3]}", text)


def _block(name: str, results: Results) -> str:
    if name in _SUMMARIES:
        return _SUMMARIES[name](results)
    rows = results[name]
    tables = []
    for question in dict.fromkeys(row.question for row in rows):
        mine = [row for row in rows if row.question == question]
        table = _along(mine) if mine[0].at is not None else _single(mine)
        tables.append(f"**{question}**\n\n{table}")
    return "\n\n".join([*tables, *_missing(results.skipped(name)), _measured(results.environment(name))]) + "\n"


def _missing(skipped: Mapping[str, str]) -> list[str]:
    """The contestants that were not measured, by question and reason."""
    names: dict[tuple[str, str], list[str]] = {}
    for who, why in skipped.items():
        question, _, name = who.rpartition(": ")
        names.setdefault((question, why.partition(":")[0]), []).append(name)
    return [f'Not measured for "{question}": {"; ".join(who)} ({why}).' for (question, why), who in names.items()]


def _measured(environment: Any) -> str:
    versions = {key: version for key, version in environment["versions"].items() if key in ("torch", "jax") and version}
    named = ", ".join(f"{key} {version}" for key, version in versions.items())
    machine = environment["machine"].get("gpu", environment["machine"]["cpu"])
    return f"<sub>{environment['date']}, {machine}, {named}, Python {environment['python']}</sub>"


def _along(rows: list[Row]) -> str:
    """One row per contestant and one column per place: medians, and ratios to the first contestant."""
    places = list(dict.fromkeys(row.at for row in rows))
    found = {(row.name, row.at): row for row in rows}
    head = f"| {rows[0].unit if rows[0].unit != 'us' else 'µs'} | {' | '.join(f'{place:,.0f}' for place in places)} |"
    lines = [head, "|---" * (len(places) + 1) + "|"]
    for name in dict.fromkeys(row.name for row in rows):
        cells = [_cell(found.get((name, place)), found.get((rows[0].name, place))) for place in places]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Row | None, first: Row | None) -> str:
    if row is None:
        return ""
    median = number(row.value.median)
    if first is None or row is first:
        return median
    by_rounds = row.ratio if row.reference == first.name else None
    ratio = by_rounds.median if by_rounds else row.value.median / first.value.median
    return f"{median} ({number(ratio)}×)"


def _single(rows: list[Row]) -> str:
    lines = ["| | median | quartiles | ratio | target |", "|---|---|---|---|---|"]
    for row in rows:
        scale, unit = _scaled(row.value.median, row.unit)
        low, median, high = (number(v * scale) for v in (row.value.low, row.value.median, row.value.high))
        ratio = f"{number(row.ratio.median)} × {row.reference}" if row.ratio else ""
        target = f"{row.target:g}: {row.verdict}" if row.target is not None else ""
        lines.append(
            f"| {row.name} | {median} {unit} | {f'{low} to {high}' if low != high else ''} | {ratio} | {target} |"
        )
    return "\n".join(lines)


def _scaled(value: float, unit: str) -> tuple[float, str]:
    """The factor and the unit that make a time easy to read."""
    if (unit == "us" and value >= 1e3) or (unit == "s" and value < 0.1):
        return (1e-3 if unit == "us" else 1e3), "ms"
    return 1, unit.replace("us", "µs")


def number(value: float) -> str:
    """Format a number with three digits and without an exponent."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 1000 else f"{rounded:g}"


def summary(results: Results) -> str:
    """The table of the first page: the cost of a small call and of a gradient step."""
    calls = {row.name: row for row in results["size"] if row.at == 1}
    steps = [row for row in results["gradients"] if row.question == results["gradients"][0].question]
    by_name = {row.name.removesuffix(" auto"): row for row in steps}
    question = steps[0].question.partition(", ")[2]
    lines = [f"| | a call on one float | gradient step, {question} |", "|---|---|---|"]
    for name in ("torch, native", "t2j", "wrap_torch2jax", "jax-tvm-ffi", "buffer_callback", "pure_callback"):
        call, step = calls.get(name), by_name.get(name)
        step_text = f"{number(step.value.median / 1000)} ms" if step else "no gradients"
        lines.append(f"| {name} | {f'{number(call.value.median)} µs' if call else ''} | {step_text} |")
    return "\n".join([*lines, "", _measured(results.environment("size"))]) + "\n"


def scaling(results: Results) -> str:
    """The table of `docs/large_scale.md`: the host's cost of calls and steps."""
    call, floor = (_found(results, "size", name, at=1).value.median for name in ("t2j", "noop floor"))
    many, one, none = (
        _found(results, "leaves", name, "call", at).value.median
        for name, at in (("t2j", 1000), ("t2j", 1), ("noop floor", 1000))
    )
    first, eighth = (
        _found(results, "dist", "t2j", f"small value_and_grad step, {n} devices").value.median / n for n in (1, 8)
    )
    beside = {
        row.question.partition(", ")[2].removeprefix("8 devices, "): row.ratio.median
        for row in results["dist"]
        if row.name == "t2j" and row.ratio and row.question.startswith("data-parallel")
    }
    growth = _found(results, "dist", "growth over the last half")
    cores = results.environment("dist")["machine"]["cores"]
    rows = {
        "a call on two numbers": f"{number(call)} µs, of which {number(floor)} µs for any FFI call",
        "each further argument": f"{number((many - one) / 999)} µs, of which {number(none / 1000)} µs for any FFI call",
        "a `value_and_grad` step of a small model, per device": f"{number(first)} µs on one device, "
        f"{number(eighth)} µs each on 8 that share {cores} cores",
        "a data-parallel step on these 8, relative to jnp": "; ".join(
            f"{number(r)}× for {q}" for q, r in beside.items()
        ),
        f"memory over the last half of {growth.question.partition(', ')[0]}": f"{number(growth.value.median)} MB more",
    }
    lines = ["| what | cost |", "|---|---|", *(f"| {what} | {cost} |" for what, cost in rows.items())]
    return "\n".join([*lines, "", _measured(results.environment("dist"))]) + "\n"


def _found(results: Results, script: str, name: str, question: str = "", at: float | None = None) -> Row:
    return next(
        row
        for row in results[script]
        if row.name == name and row.question.startswith(question) and (at is None or row.at == at)
    )


def gpu_models(results: Results) -> str:
    """The time of models on a GPU: steps in a row, each started without waiting for the previous one."""
    rows: dict[str, dict[str, Row]] = {}
    for row in results["gpu"]:
        times, _, question = row.question.partition(" times ")
        if times.isdecimal() and ("forward, " in question or "value_and_grad, " in question):
            rows.setdefault(row.question, {})[row.name] = row
    names = ("torch, native", "t2j", 't2j, residuals="graph"', "wrap_torch2jax", "torch, CUDA graph")
    lines = [f"| ms, in a row | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for question, found in rows.items():
        times, _, what = question.partition(" times ")
        cells = []
        for name in names:
            row = found.get(name)
            ratio = f" ({number(row.ratio.median)}×)" if row and row.ratio else ""
            cells.append(f"{number(row.value.median / 1000 / int(times))}{ratio}" if row else "")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _measured(results.environment("gpu"))]) + "\n"


_SUMMARIES = {"summary": summary, "scaling": scaling, "gpu-models": gpu_models}
