"""Draw the committed results, and fill the tables of the READMEs: `python benchmarks/plot.py --tables`.

Every plot is written twice, for light and for dark pages. The same results and the same matplotlib give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from _results import Results, Row
from _summaries import MLP_STEP, REAL_STEP
from _tables import fill

mpl.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
# Okabe and Ito's colours, which colour-blind readers can distinguish. None is the colour of the text.
COLOURS: dict[str, str | None] = {
    "t2j": "#d55e00",
    "torch, native": None,
    "wrap_torch2jax": "#0072b2",
    "jax-tvm-ffi": "#009e73",
    "buffer_callback": "#e69f00",
    "pure_callback": "#cc79a7",
    "jax.jit, native": "#999999",
    "noop floor": "#999999",
}
STYLES = {
    "torch, native": "--",
    "jax.jit, native": "-.",
    "noop floor": ":",
    "t2j out": "--",
    "t2j copy": "-.",
    "t2j in place": ":",
    "t2j sequential": "--",
}
THEMES = {"light": ("#1f2328", "#d8dee4"), "dark": ("#e6edf3", "#30363d")}
DARKER_BLUE = {"#0072b2": "#56b4e9"}  # Okabe and Ito's second blue, for a dark page

Draw = Callable[[Results, str], Any]


def colour(name: str, theme: str) -> str:
    """The colour of a contestant; variants of t2j share that of t2j."""
    found = COLOURS.get("t2j" if name.startswith("t2j") else name)
    text = THEMES[theme][0]
    return text if found is None else DARKER_BLUE.get(found, found) if theme == "dark" else found


def hero(results: Results, theme: str) -> Any:
    """Time against size, and its ratio to plain torch."""
    figure, (times, ratios) = plt.subplots(2, 1, figsize=(7.2, 6.6), sharex=True, height_ratios=[3, 2])
    rows = results["size"]
    lines(times, rows, theme)
    lines(ratios, [row for row in rows if row.ratio and row.name != "noop floor"], theme, of_ratio=True)
    ratios.axhline(1, color=THEMES[theme][0], linestyle="--", linewidth=1.2)
    times.set(
        xscale="log", yscale="log", ylabel="time of a call, µs", title="a + b called from JAX under jit, float32, CPU"
    )
    ratios.set(yscale="log", ylabel="times plain torch", xlabel="elements")
    times.legend(ncols=2, loc="upper left")
    return figure


def leaves(results: Results, theme: str) -> Any:
    """The cost of each further argument, in a call and in tracing."""
    return side_by_side(
        results, theme, "leaves", "arrays in the argument", ("time of a call, µs", "wrap, trace and lower, µs")
    )


def outputs(results: Results, theme: str) -> Any:
    """The cost of each way to return the result."""
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    rows = [row for row in results["outputs"] if row.name != "wrap_torch2jax"]
    names = list(dict.fromkeys(row.name for row in rows))
    marks = dict(zip([name for name in names if name.startswith("t2j")], "osDv", strict=False))
    lines(axes, rows, theme, marks)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="elements",
        ylabel="time of a call, µs",
        title="Where the result of a + b goes",
    )
    axes.legend(ncols=2)
    return figure


def vmap(results: Results, theme: str) -> Any:
    """Batches in one call, or example by example."""
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    lines(axes, results["vmap"], theme, {"t2j": "o", "t2j sequential": "s"})
    axes.set(
        xscale="log", yscale="log", xlabel="batch", ylabel="time of a call, µs", title="vmap of tanh(x @ w), width 64"
    )
    axes.legend(ncols=2)
    return figure


def gradients(results: Results, theme: str) -> Any:
    """Gradient and training steps, relative to plain torch."""
    return bars([*results["gradients"], *results["train"]], theme)


def models(results: Results, theme: str) -> Any:
    """Gradient steps of real models, relative to plain torch."""
    return bars(
        [row for row in results["models"] if row.question.startswith("step, ") and "by least" not in row.question],
        theme,
    )


def steps(results: Results, theme: str) -> Any:
    """Gradient steps of a large perceptron and of a real model."""
    mlp = [row for row in results["gradients"] if row.question == MLP_STEP]
    return bars([*mlp, *(row for row in results["models"] if row.question == REAL_STEP)], theme)


def bars(rows: list[Row], theme: str) -> Any:
    """A bar for the ratio of each row, under its question."""
    rows = [row for row in rows if row.ratio]
    title = lambda row: row.question if row.at is None else f"{row.question}: {row.at:,.0f}"
    titles = list(dict.fromkeys(map(title, rows)))
    figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.26 * (len(rows) + len(titles))))
    place, ticks, labels = 0.0, [], []
    for question in titles:
        place += 1
        axes.text(
            0.02, place, question, va="center", fontsize=9, fontweight="bold", transform=axes.get_yaxis_transform()
        )
        for row in (row for row in rows if title(row) == question):
            place += 1
            low, high = row.ratio.median - row.ratio.low, row.ratio.high - row.ratio.median
            shade = shade_of(row.name, theme)
            axes.barh(place, row.ratio.median, 0.8, color=shade, xerr=[[low], [high]], ecolor=THEMES[theme][0])
            ticks.append(place)
            labels.append(row.name)
    axes.set(yticks=ticks, yticklabels=labels, xlabel="time, plain torch = 1")
    axes.axvline(1, color=THEMES[theme][0], linestyle="--", linewidth=1.2)
    axes.set_ylim(place + 0.8, 0.3)
    axes.grid(visible=False, axis="y")
    return figure


def shade_of(name: str, theme: str) -> str:
    """The colour of a bar: that of the contestant, paler for options of t2j, and grey for others."""
    if name in COLOURS or name == "t2j auto":
        return colour(name, theme)
    return (colour(name, theme) if name.startswith("t2j") else THEMES[theme][0]) + "88"


def side_by_side(results: Results, theme: str, name: str, xlabel: str, ylabels: tuple[str, ...]) -> Any:
    """One panel for each question of a script."""
    rows = results[name]
    questions = list(dict.fromkeys(row.question for row in rows))
    figure, panels = plt.subplots(1, len(questions), figsize=(9.6, 4.4))
    for axes, question, ylabel in zip(panels, questions, ylabels, strict=True):
        lines(axes, [row for row in rows if row.question == question and not row.name.endswith("eager")], theme)
        axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    panels[0].legend()
    return figure


def lines(
    axes: Any, rows: list[Row], theme: str, marks: dict[str, str] | None = None, *, of_ratio: bool = False
) -> None:
    """A line for each contestant, with its quartiles as a band."""
    for name in dict.fromkeys(row.name for row in rows):
        mine = [row for row in rows if row.name == name and row.at is not None]
        at = [row.at for row in mine]
        values = [row.ratio if of_ratio else row.value for row in mine]
        is_ours = name.startswith("t2j")
        shade, mark = colour(name, theme), (marks or {}).get(name, "o")
        axes.plot(
            at,
            [v.median for v in values],
            label=name,
            color=shade,
            linestyle=STYLES.get(name, "-"),
            linewidth=2.4 if is_ours else 1.4,
            marker=mark,
            markersize=5 if is_ours else 3.5,
            zorder=3 if is_ours else 2,
        )
        axes.fill_between(at, [v.low for v in values], [v.high for v in values], color=shade, alpha=0.15, linewidth=0)


PLOTS: dict[str, Draw] = {f.__name__: f for f in (hero, leaves, outputs, vmap, gradients, models, steps)}


def draw(results: Results, folder: Path) -> list[Path]:
    """Write every plot in both themes."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for theme, (text, grid) in THEMES.items():
        settings = {
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), text),
            "grid.color": grid,
            "axes.grid": True,
            "axes.axisbelow": True,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 12,
            "legend.fontsize": 10,
            "axes.titlelocation": "left",
            "svg.fonttype": "path",
            "svg.hashsalt": "t2j",
        }
        with mpl.rc_context(settings):
            for name, make in PLOTS.items():
                figure = make(results, theme)
                path = folder / f"{name}-{theme}.svg"
                figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
                plt.close(figure)
                written.append(path)
    return written


def main() -> None:
    """Draw the plots, and fill the tables with `--tables`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--output", type=Path, default=HERE / "plots")
    parser.add_argument("--tables", action="store_true", help="also write the tables of the READMEs")
    options = parser.parse_args()
    results = Results(options.results)
    for path in draw(results, options.output):
        print(path)
    if options.tables:
        for page in fill(results):
            print(page)


if __name__ == "__main__":
    main()
