"""The tables of `docs/speed.md`: which option to choose, from the results of several scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from _models_tables import FITTED
from _results import Results, Row, measured, number

# The options of a gradient step, and their names in bench_models and in bench_gradients.
STEPS = {
    "default": ("t2j", "t2j auto"),
    '`residuals="graph"`': ("t2j graph",),
    '`residuals="recompute"`': ("t2j recompute",),
    "`compile=True`": ("t2j compiled",),
    "`torch.compile`, without JAX": ("torch.compile",),
}


def steps(results: Results) -> str:
    """The ratio of each option to torch for every model; the lowest is bold."""
    rows = [row for row in (*results["models"], *results["gradients"]) if row.ratio and FITTED not in row.question]
    lines = [f"| relative to PyTorch | {' | '.join(STEPS)} |", "|---" * (len(STEPS) + 1) + "|"]
    for question, at in sorted(dict.fromkeys((row.question, row.at) for row in rows), key=_is_step):
        mine = {row.name: row for row in rows if (row.question, row.at) == (question, at)}
        what = question.replace("value_and_grad", "step")
        lines.append(f"| {what if at is None else f'{what}: {at:,.0f}'} | {' | '.join(_cells(mine))} |")
    return "\n".join([*lines, "", measured(results.environment("models"))]) + "\n"


def _is_step(question: tuple[str, float | None]) -> bool:
    return not question[0].startswith("forward")


def _cells(rows: dict[str, Row]) -> list[str]:
    found = [next((rows[name] for name in names if name in rows), None) for names in STEPS.values()]
    ratios = [row.ratio.median if row and row.ratio else None for row in found]
    texts = ["" if ratio is None else f"{number(ratio)}×" for ratio in ratios]
    best = min((ratio for ratio in ratios[:-1] if ratio is not None), default=0)  # of the options of t2j
    return [f"**{text}**" if text == f"{number(best)}×" else text for text in texts[:-1]] + texts[-1:]


class Compared(NamedTuple):
    """An option, what was measured, and the rows of the option and of the default."""

    option: str
    what: str
    script: str
    name: str
    default: str
    question: str
    at: int | None = None


def options(results: Results) -> str:
    """What the other options gain or cost."""
    lines = ["| option | what was measured | relative to the default |", "|---|---|---|"]
    for one in compared(results):
        rows = [_row(results, one, name) for name in (one.name, one.default)]
        if rows[0] and rows[1]:
            lines.append(f"| `{one.option}` | {one.what} | {_ratio(rows[0], rows[1])} |")
    return "\n".join([*lines, "", measured(results.environment("options"))]) + "\n"


def compared(results: Results) -> Iterator[Compared]:
    """The lines of the table."""
    for name in ("out", "copy"):
        for at in (10**3, 10**6, 10**7):
            yield Compared(f'outputs="{name}"', f"a + b, {at:,} floats", "outputs", f"t2j {name}", "t2j auto", "", at)
    for at in (10**3, 10**7):
        what = f"`p.add_(g)` instead of `p + g`, {at:,} floats"
        yield Compared("mutable_argnums=", what, "outputs", "t2j in place", "t2j auto", "", at)
    questions = dict.fromkeys(row.question for row in results["options"])
    for question in questions:
        option, _, what = question.partition(", ")
        for name in _values(results["options"], question):
            default = '"auto"' if option == "arguments=" else "2"
            yield Compared(f"{option}{name}", what, "options", f"t2j {name}", f"t2j {default}", question)
    for at in (1, 4, 64):
        what = f"tanh(x @ w), batch of {at}"
        yield Compared('vmap_method="sequential"', what, "vmap", "t2j sequential", "t2j", "", at)
    yield Compared("no jax.jit", "gradient of 10 leaves", "autodiff", "t2j", "t2j jitted", "eager grad")
    for name in ("recompute", "graph"):
        what, question = "peak memory of a step, MLP 8 x 1024, batch 4096", "peak memory of value_and_grad"
        yield Compared(f'residuals="{name}"', what, "startup", f"t2j {name}", "t2j", question)


def _values(rows: list[Row], question: str) -> list[str]:
    """The values of an option besides its default, which comes first."""
    return [row.name.removeprefix("t2j ") for row in rows if row.question == question][1:]


def _row(results: Results, one: Compared, name: str) -> Row | None:
    return next(
        (
            row
            for row in results[one.script]
            if row.name == name and row.question.startswith(one.question) and one.at in (None, row.at)
        ),
        None,
    )


def _ratio(row: Row, default: Row) -> str:
    if row.ratio and row.reference == default.name:
        return f"{number(row.ratio.median)}×"
    if row.ratio and default.ratio and row.reference == default.reference:  # each was compared within rounds
        return f"{number(row.ratio.median / default.ratio.median)}×"
    return f"{number(row.value.median / default.value.median)}×"
