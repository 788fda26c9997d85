"""Tables that show rows of several results files, or many rows of one in little space."""

from __future__ import annotations

from _results import Results, Row, found_row, in_ms, measured, number

MLP_STEP = "value_and_grad, MLP 4 x 1024, batch 256"
REAL_STEP = "step, mobile convnet, 4 x 3 x 32 x 32"
SMALL_STEP, ARRAYS = "step, leaves of [Linear(16, 16), Tanh]", 100


def summary(results: Results) -> str:
    """The table of the first page: a small call, and gradient steps of models of large and of many small layers."""
    calls = {row.name: row for row in results["size"] if row.at == 1}
    steps = {
        "MLP 4 x 1024, batch 256": [row for row in results["gradients"] if row.question == MLP_STEP],
        "mobile convnet, 4 x 3 x 32 x 32": [row for row in results["models"] if row.question == REAL_STEP],
        f"{ARRAYS // 2} small layers [Linear(16, 16), Tanh]": [
            row for row in results["models"] if row.question == SMALL_STEP and row.at == ARRAYS
        ],
    }
    found = [{row.name.removesuffix(" auto"): row for row in rows} for rows in steps.values()]
    lines = [f"| | a call on one float | {' | '.join(f'step, {model}' for model in steps)} |", "|---|---|---|---|---|"]
    others = ("torch.compile", "wrap_torch2jax", "jax-tvm-ffi", "buffer_callback", "pure_callback")
    for name in ("torch, native", "t2j", "t2j compiled", *others):
        call = f"{number(calls[name].value.median)} µs" if name in calls else ""
        cells = [_step(name, rows) for rows in found]
        if call or any(cells):
            lines.append(f"| {name} | {call} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", measured(results.environment("size"))]) + "\n"


def _step(name: str, rows: dict[str, Row]) -> str:
    if name in ("jax-tvm-ffi", "buffer_callback", "pure_callback"):
        return "gradients by hand"
    return in_ms(rows[name]) if name in rows else ""


def scaling(results: Results) -> str:
    """The table of `docs/large_scale.md`: the host's cost of calls and steps."""
    call, floor = (found_row(results, "size", name, at=1).value.median for name in ("t2j", "noop floor"))
    many, one, none = (
        found_row(results, "leaves", name, "call", at).value.median
        for name, at in (("t2j", 1000), ("t2j", 1), ("noop floor", 1000))
    )
    first, eighth = (
        found_row(results, "dist", "t2j", f"small value_and_grad step, {n} devices").value.median / n for n in (1, 8)
    )
    beside = {
        row.question.partition(", ")[2].removeprefix("8 devices, "): row.ratio.median
        for row in results["dist"]
        if row.name == "t2j" and row.ratio and row.question.startswith("data-parallel")
    }
    growth = found_row(results, "dist", "growth over the last half")
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
    return "\n".join([*lines, "", measured(results.environment("dist"))]) + "\n"


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
    return "\n".join([*lines, "", measured(results.environment("gpu"))]) + "\n"
