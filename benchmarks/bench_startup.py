"""Measurements in new processes: `python benchmarks/bench_startup.py [--quick]`.

The time from `import torch, jax` to the first result, the peak of memory, and what remains after 10,000 wraps. The
processes are not pinned to a core, because compiling and importing use all cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["T2J_BENCH_CORES"] = "all"

from _harness import Report, Row, count_row, sample_row
from _script import main

HERE = Path(__file__).parent
TORCH, JNP, PEER = "torch, native", "jax.jit, native", "wrap_torch2jax"


@dataclass(frozen=True)
class Plan:
    """The sizes and counts of a run."""

    cold: tuple[str, ...]
    cold_starts: int
    cold_peer: bool
    call: tuple[str, ...]
    step: tuple[str, ...]
    floats: int
    repeats: int
    checkpoints: tuple[int, ...]
    peer_checkpoints: tuple[int, ...]


FULL = Plan(
    cold=("jax", "t2j", "jax-tvm-ffi", "buffer_callback", "pure_callback"),
    cold_starts=7,
    cold_peer=True,
    call=(TORCH, "t2j", "t2j copy", PEER, "jax-tvm-ffi", "buffer_callback", "pure_callback", JNP),
    step=(TORCH, "t2j", "t2j recompute", "t2j graph", PEER, JNP),
    floats=10**7,
    repeats=3,
    checkpoints=(2000, 10_000),
    peer_checkpoints=(400, 2000),
)
QUICK = Plan(("t2j",), 1, False, (TORCH, "t2j"), (), 10**6, 1, (50, 100), ())


def in_fresh_process(script: str, *args: object, bytecode: str | None = None, empty: bool = True) -> dict[str, Any]:
    """Run a script of this folder; return the JSON on its last line.

    With `empty`, home and caches are empty folders. With `bytecode`, Python keeps its compiled modules there, as
    installers keep them next to the modules.
    """
    with tempfile.TemporaryDirectory() as folder:
        caches = ("HOME", "XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR")
        env = {**os.environ, **(dict.fromkeys(caches, folder) if empty else {})}
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
        if bytecode is not None:
            env.pop("PYTHONDONTWRITEBYTECODE", None)
            env["PYTHONPYCACHEPREFIX"] = bytecode
        command = [sys.executable, str(HERE / script), *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def cold_start(report: Report, plan: Plan) -> None:
    """The time from `import torch, jax` to the first result. The size decides how t2j infers the outputs."""
    turns = [(name, 8) for name in plan.cold] + [("t2j", 1_000_000)]
    entrants = turns * (plan.cold_starts + 1) + [(PEER, 8)] * plan.cold_peer
    stages: dict[tuple[str, int], list[dict[str, float]]] = {entrant: [] for entrant in entrants}
    with tempfile.TemporaryDirectory() as bytecode:
        for turn, entrant in enumerate(entrants):
            try:
                measured = in_fresh_process("_cold_start.py", *entrant, bytecode=bytecode)
            except RuntimeError as error:
                report.skip("cold start", str(entrant), error)
                continue
            if turn >= len(turns):  # the first turn of each contestant only fills the disk cache and the bytecode
                stages[entrant].append(measured)
    for size in (8, 1_000_000):
        question = f"import and first jitted a+b after import torch, jax, {size:,} floats"
        for (name, of_size), seen in stages.items():
            if seen and of_size == size:
                report.rows += _cold_rows(question, name, seen)


def _cold_rows(question: str, name: str, seen: Sequence[dict[str, float]]) -> list[Row]:
    rows = [sample_row(question, name, [stages["total"] for stages in seen], 1.0 if name == "t2j" else None)]
    for part in ("jax_start", "import", "first_call"):
        rows.append(sample_row(question, f"  {name}: {part}", [stages[part] for stages in seen]))
    return rows


def peak_memory(report: Report, plan: Plan) -> None:
    """The peak of resident memory during the calls, minus the memory before them."""
    questions = {
        f"peak memory of jitted a+b, {plan.floats:,} floats": ("call", plan.call, plan.floats),
        "peak memory of value_and_grad, MLP 8 x 1024, batch 4096": ("step", plan.step, 4096),
    }
    for question, (task, names, size) in questions.items():
        seen: dict[str, list[float]] = {}
        for name in names * plan.repeats:
            try:
                measured = in_fresh_process("_peak_memory.py", task, name, size, empty=False)
            except RuntimeError as error:
                report.skip(question, name, error)
                continue
            seen.setdefault(name, []).append(measured["peak_mb"])
        report.rows += [sample_row(question, name, values, unit="MB") for name, values in seen.items()]


def lifetime(report: Report, plan: Plan) -> None:
    """The memory and functions that remain after many wraps."""
    for name, checkpoints in (("t2j", plan.checkpoints), (PEER, plan.peer_checkpoints)):
        if not checkpoints:
            continue
        question = f"{checkpoints[-1]:,} wraps of fresh functions, each jitted and called, {name}"
        try:
            left = in_fresh_process("_lifetime.py", name, *checkpoints)
        except RuntimeError as error:
            report.skip(question, name, error)
            continue
        target = 0 if name == "t2j" else None
        report.rows.append(count_row(question, "functions alive", "", left["alive"], target))
        report.rows += [count_row(question, f"RSS after {n}", "MB", mb) for n, mb in left["rss_mb"].items()]
        report.rows.append(count_row(question, "time of a wrap", "ms", 1e3 * left["seconds_per_wrap"]))


if __name__ == "__main__":
    main({"cold": cold_start, "memory": peak_memory, "lifetime": lifetime}, FULL, QUICK)
