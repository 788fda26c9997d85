"""The tables of real models."""

from __future__ import annotations

from collections.abc import Mapping

from _results import Results, Row, in_ms, measured, number

NATIVE, COMPILED, GRAPH = "torch, native", "t2j compiled", "t2j graph"
FITTED = ", by least squares over the leaves"
PEERS = ("wrap_torch2jax", "jax.jit, native", "noop floor", "torch after the floor")
COLUMNS = (NATIVE, "torch.compile", "t2j", GRAPH, COMPILED, *PEERS)


def models(results: Results) -> str:
    """A line for each model and kind: the time of torch, and the ratios of the others to it."""
    fitted = [row for row in results["models"] if FITTED in row.question]
    rows = [row for row in results["models"] if FITTED not in row.question]
    tables = [_ratios(rows), _per_leaf(fitted)]
    missing = _missing(results.skipped("models"), len({_model(row.question, row.at) for row in rows}))
    return "\n\n".join([*tables, *missing, measured(results.environment("models"))]) + "\n"


def _ratios(rows: list[Row]) -> str:
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for question, at in dict.fromkeys((row.question, row.at) for row in rows):
        found = {row.name: row for row in rows if (row.question, row.at) == (question, at)}
        cells = [_cell(found.get(name)) for name in COLUMNS]
        lines.append(f"| {question if at is None else f'{question}: {at:,.0f}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    target = f" (target {row.target:g}: {row.verdict})" if row.target is not None else ""
    return f"{number(row.ratio.median)}×{target}" if row.ratio else in_ms(row)


def _per_leaf(rows: list[Row]) -> str:
    """The line through the medians of each contestant: what a leaf costs, and a call without leaves."""
    titles = [f"{kind}, {what}" for kind in ("forward", "step") for what in ("each leaf", "without leaves")]
    found = {(row.question.removesuffix(FITTED), row.name): row for row in rows}
    lines = [f"| µs of the host | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name in COLUMNS:
        cells = [_with_ratio(found.get((title, name)), title) for title in titles]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_ratio(row: Row | None, title: str) -> str:
    if row is None:
        return ""
    ratio = f" ({number(row.ratio.median)}×)" if row.ratio and "without" not in title else ""
    return f"{number(row.value.median)}{ratio}"


def _model(question: str, at: float | None = None) -> str:
    """The model of a question, without the kind."""
    name = question.partition(", ")[2]
    return name if at is None else f"{name}, {at:,.0f}"


def _missing(skipped: Mapping[str, str], models: int) -> list[str]:
    """The contestants that were not measured, by reason; `models` is the number of all models."""
    where: dict[tuple[str, str], dict[str, None]] = {}
    for who, why in skipped.items():
        question, _, name = who.rpartition(": ")
        where.setdefault((name, why.partition(": ")[2].rstrip(".")), {})[_model(question)] = None
    every = lambda places: "any model" if len(places) == models else "; ".join(places)
    return [f"Not measured: {name} ({why}), for {every(places)}." for (name, why), places in where.items()]
