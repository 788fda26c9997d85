"""What a call through t2j_core costs and leaves behind: `python benchmarks/bench_core.py [--quick]`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _harness import Call, Pace, Race, Report, Row, Versus, count_row, environment, sample_row, save, table

# The harness comes first because it pins the threads before torch loads.
# isort: split
import jax
import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

HERE = Path(__file__).parent
PEER = "wrap_torch2jax"
FLOOR = "noop floor"


@dataclass(frozen=True)
class Plan:
    """How much of everything a run does."""

    small: Pace
    large: Pace
    cold_starts: int
    cold_peer: bool
    checkpoints: tuple[int, ...]
    peer_checkpoints: tuple[int, ...]


FULL = Plan(Pace(101), Pace(41), 7, True, (2000, 10_000), (400, 2000))
QUICK = Plan(Pace(21, warmup=0.1), Pace(9), 1, False, (200, 1000), ())


def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a + b


def add_out(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    return torch.add(a, b, out=out)


def add_in_place(p: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    p.add_(g)
    return p


def first_plus_one(w: dict[str, torch.Tensor]) -> torch.Tensor:
    return w["w000"] + 1


def t2j(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    from t2j_core import torch2jax

    return torch2jax(fn, **options)


def floor(*args: jax.Array) -> Any:
    from t2j_core.testing import noop

    return noop(*args)


def peer(fn: Callable[..., Any], *examples: Any, entry: str = "torch2jax") -> Callable[..., Any]:
    with contextlib.redirect_stdout(sys.stderr):  # it prints while it compiles its extension
        import wrap_torch2jax

        return getattr(wrap_torch2jax, entry)(fn, *examples)


def calls(fn: Callable[..., Any], *args: Any) -> Call:
    return lambda: fn(*args).block_until_ready()


def jitted(fn: Callable[..., Any], *args: Any) -> Call:
    return calls(jax.jit(fn), *args)


def equals(expected: np.ndarray) -> Callable[[object], None]:
    return lambda result: np.testing.assert_allclose(np.asarray(result), expected, rtol=1e-6)


def pair(n: int) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jax.numpy.asarray(rng.normal(size=n), "float32"), jax.numpy.asarray(rng.normal(size=n), "float32")


def tensors(*arrays: jax.Array) -> list[torch.Tensor]:
    return [torch.tensor(np.asarray(array)) for array in arrays]


def buffer_callback_add(a: jax.Array, b: jax.Array) -> Any:
    from jax.experimental.buffer_callback import buffer_callback

    def write(_context: object, out: Any, *args: Any) -> None:
        torch.add(*map(from_dlpack, args), out=from_dlpack(out))

    return buffer_callback(write, jax.ShapeDtypeStruct(a.shape, a.dtype))(a, b)


def pure_callback_add(a: jax.Array, b: jax.Array) -> Any:
    def run(*args: jax.Array) -> np.ndarray:
        return add(*tensors(*args)).numpy()

    return jax.pure_callback(run, jax.ShapeDtypeStruct(a.shape, a.dtype), a, b)


def small_call(report: Report, plan: Plan) -> None:
    """1. The overhead of one jitted call."""
    a, b = pair(8)
    ta, tb = tensors(a, b)
    check = equals(np.asarray(a) + np.asarray(b))
    race = Race("1. jitted a+b, 8 floats", report)
    race.enter(FLOOR, lambda: jitted(floor, a, b))
    race.enter("t2j", lambda: jitted(t2j(add), a, b), Versus(FLOOR, 2.0), check)
    race.enter(PEER, lambda: jitted(peer(add, a, b), a, b), Versus(FLOOR), check)
    race.enter("buffer_callback", lambda: jitted(buffer_callback_add, a, b), Versus(FLOOR), check)
    race.enter("pure_callback", lambda: jitted(pure_callback_add, a, b), Versus(FLOOR), check)
    race.enter("jax.jit, native", lambda: jitted(jax.numpy.add, a, b), Versus(FLOOR), check)
    race.enter("torch, native", lambda: lambda: ta + tb, Versus(FLOOR), check)
    race.run(plan.small)


def eager_call(report: Report, plan: Plan) -> None:
    """2. The wrapper called outside jit."""
    a, b = pair(8)
    check = equals(np.asarray(a) + np.asarray(b))
    race = Race("2. eager a+b, 8 floats", report)
    race.enter("t2j jitted", lambda: jitted(t2j(add), a, b), None, check)
    race.enter("t2j eager", lambda: calls(t2j(add), a, b), Versus("t2j jitted", 1.3), check)
    race.enter(f"{PEER} jitted", lambda: jitted(peer(add, a, b), a, b), None, check)
    for entry in ("torch2jax", "torch2jax_without_vjp"):
        name = f"{PEER} eager, {entry}"
        make = lambda entry=entry: calls(peer(add, a, b, entry=entry), a, b)
        race.enter(name, make, Versus(f"{PEER} jitted", 1.3), check)
    race.run(plan.small)


def many_arguments(report: Report, plan: Plan) -> None:
    """3. A tree of parameters."""
    for n in (100, 400):
        _arguments(report, plan, n)


def _arguments(report: Report, plan: Plan, n: int) -> None:
    weights = {f"w{i:03d}": jax.numpy.full(8, i, "float32") for i in range(n)}
    check = equals(np.ones(8, "float32"))
    race = Race(f"3. jitted call, dict of {n} arrays", report)
    race.enter(FLOOR, lambda: jitted(lambda w: floor(*w.values()), weights))
    race.enter(PEER, lambda: jitted(peer(first_plus_one, weights), weights), Versus(FLOOR), check)
    race.enter("t2j", lambda: jitted(t2j(first_plus_one), weights), Versus(PEER, 1.0), check)
    race.run(plan.small)


def donated(p: jax.Array, g: jax.Array) -> Call:
    """An update in place whose result is the next call's argument."""
    step = jax.jit(t2j(add_in_place, mutable_argnums=(0,)), donate_argnums=0)
    held = [jax.numpy.array(p, copy=True)]

    def call() -> jax.Array:
        held[0] = step(held[0], g)
        return held[0].block_until_ready()

    return call


def large_output(report: Report, plan: Plan) -> None:
    """4. Where the result is written."""
    a, b = pair(10_000_000)
    ta, tb = tensors(a, b)
    check = equals(np.asarray(a) + np.asarray(b))
    reference = "torch, allocating"
    race = Race("4. a+b, 1e7 floats", report)
    race.enter(reference, lambda: lambda: ta + tb, None, check)
    race.enter("t2j auto", lambda: jitted(t2j(add, outputs="auto"), a, b), Versus(reference, 1.15), check)
    race.enter("t2j out", lambda: jitted(t2j(add_out, outputs="out"), a, b), Versus(reference), check)
    race.enter("t2j copy", lambda: jitted(t2j(add, outputs="copy"), a, b), Versus(reference), check)
    race.enter("t2j mutable, donated", lambda: donated(a, b), Versus("t2j copy", 0.4), check)
    race.enter(PEER, lambda: jitted(peer(add, a, b), a, b), Versus(reference), check)
    race.run(plan.large)


def in_fresh_process(script: str, *args: object, bytecode: str | None = None) -> dict[str, Any]:
    """Run a script of this folder with empty caches; return the JSON on its last line.

    With `bytecode`, Python keeps its compiled modules there, as installers do beside the modules.
    """
    with tempfile.TemporaryDirectory() as empty:
        caches = ("HOME", "XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR")
        env = {**os.environ, **dict.fromkeys(caches, empty)}
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
    """5. From `import torch, jax` to the first result; how outputs are inferred depends on the size."""
    turns = [("jax", 8), ("t2j", 8), ("t2j", 1_000_000)]
    entrants = turns * (plan.cold_starts + 1) + [(PEER, 8)] * plan.cold_peer
    stages: dict[tuple[str, int], list[dict[str, float]]] = {entrant: [] for entrant in entrants}
    with tempfile.TemporaryDirectory() as bytecode:
        for turn, entrant in enumerate(entrants):
            try:
                measured = in_fresh_process("_cold_start.py", *entrant, bytecode=bytecode)
            except RuntimeError as error:
                report.skip("5", str(entrant), error)
                continue
            if turn >= len(turns):  # the first turn of each only fills the disk cache and the bytecode
                stages[entrant].append(measured)
    for size in (8, 1_000_000):
        question = f"5. import and first jitted a+b after import torch, jax, {size:,} floats"
        for (name, of_size), seen in stages.items():
            if seen and of_size == size:
                report.rows += _cold_rows(question, name, seen)


def _cold_rows(question: str, name: str, seen: Sequence[dict[str, float]]) -> list[Row]:
    parts = ("jax_start", "import", "first_call") if name != "jax" else ("jax_start", "first_call")
    rows = [sample_row(question, name, [stages["total"] for stages in seen], 1.0 if name == "t2j" else None)]
    for part in parts:
        rows.append(sample_row(question, f"  {name}: {part}", [stages[part] for stages in seen]))
    return rows


def lifetime(report: Report, plan: Plan) -> None:
    """6. What wraps leave behind."""
    for name, checkpoints in (("t2j", plan.checkpoints), (PEER, plan.peer_checkpoints)):
        if not checkpoints:
            continue
        question = f"6. {checkpoints[-1]:,} wraps of fresh functions, each jitted and called, {name}"
        try:
            left = in_fresh_process("_lifetime.py", name, *checkpoints)
        except RuntimeError as error:
            report.skip(question, name, error)
            continue
        target = 0 if name == "t2j" else None
        report.rows.append(count_row(question, "functions alive", "", left["alive"], target))
        report.rows += [count_row(question, f"RSS after {n}", "MB", mb) for n, mb in left["rss_mb"].items()]
        report.rows.append(count_row(question, "time of a wrap", "ms", 1e3 * left["seconds_per_wrap"]))


QUESTIONS: dict[int, Callable[[Report, Plan], None]] = {
    1: small_call,
    2: eager_call,
    3: many_arguments,
    4: large_output,
    5: cold_start,
    6: lifetime,
}


def main() -> None:
    """Answer the questions asked for, print the table and save the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under two minutes")
    everything = list(QUESTIONS)
    parser.add_argument("--only", type=int, nargs="+", choices=everything, default=everything, metavar="N")
    parser.add_argument("--output", type=Path, help="results file; a full run writes results/core.json")
    options = parser.parse_args()
    output = options.output
    if output is None and not options.quick and options.only == everything:
        output = HERE / "results" / "core.json"
    head, report = environment(), Report()
    for number in options.only:
        QUESTIONS[number](report, QUICK if options.quick else FULL)
    if output is not None:
        save(report, head, output)
    sys.stdout.write(table(report) + "\n")


if __name__ == "__main__":
    main()
