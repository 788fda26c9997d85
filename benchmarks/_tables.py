"""Write results as Markdown tables between two comments in the READMEs and in the docs.

`<!-- results: size -->` begins the table of `results/size.json`, and `<!-- end of results -->` ends it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import _choice_tables
from _models_tables import models
from _results import Results, Row, measured, number
from _summaries import gpu_models, scaling, summary

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "benchmarks/README.md", "docs/speed.md", "docs/large_scale.md", "docs/gpus.md")
PAGES = tuple(ROOT / page for page in NAMES)
_PLACE = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n).*?(<!-- end of results -->)", flags=re.S)


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
    return "\n\n".join([*tables, *_missing(results.skipped(name)), measured(results.environment(name))]) + "\n"


def _missing(skipped: Mapping[str, str]) -> list[str]:
    """The contestants that were not measured, by question and reason."""
    names: dict[tuple[str, str], list[str]] = {}
    for who, why in skipped.items():
        question, _, name = who.rpartition(": ")
        names.setdefault((question, why.partition(":")[0]), []).append(name)
    return [f'Not measured for "{question}": {"; ".join(who)} ({why}).' for (question, why), who in names.items()]


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


_SUMMARIES = {
    "summary": summary,
    "models": models,
    "scaling": scaling,
    "gpu-models": gpu_models,
    "speed-steps": _choice_tables.steps,
    "speed-options": _choice_tables.options,
}
