"""Run the notebooks of `wrap_torch2jax` with only the import changed.

`python tests/predecessor/predecessor.py --source CHECKOUT [--output FILE.json]`

The notebooks come from a checkout of the repository of `wrap_torch2jax` (github.com/rdyro/torch2jax). The code cells of
each run in order, in one namespace. What the notebooks download is replaced: `downloads.py` makes models of the same
classes and data of the same shape. Cells that need a GPU, or that compare with a module of the checkout, are left out,
see LEFT_OUT. What a notebook prints or computes is compared with plain PyTorch, see COMPARISONS.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from downloads import replaced_downloads

PACKAGES = ("torch", "jax", "t2j-core", "t2j-autodiff", "transformers", "torchvision", "optax")
IMPORT = re.compile(r"^from (wrap_)?torch2jax import ", flags=re.M)

# A cell with one of these is left out.
LEFT_OUT = {
    "torch.cuda.synchronize()": "needs a GPU",
    "from pure_callback_alternative import": "imports a module of the checkout, which imports the predecessor",
    "jax_fwd_fn2 = jax.jit(wrap_torch_fn(": "uses that module",
    "[np.mean(t2s), np.mean(t1s), np.mean(t3s)]": "plots times that were measured on a GPU",
}

# This notebook passes its labels through JAX to PyTorch's own loss, which takes no int32. Without x64 they are int32,
# with the predecessor too (jax 0.10).
NEEDS_X64 = ("resnet_example.ipynb",)


class DifferenceError(AssertionError):
    """A notebook computes something else than PyTorch."""


# --- what is compared with PyTorch ---------------------------------------------------------------------------------


def printed_results(source: str, names: dict[str, Any], printed: str) -> None:
    """Each printed result of `jax_fn` is what the function returns in PyTorch, as JAX prints it."""
    with contextlib.redirect_stdout(io.StringIO()):  # the function prints
        results = names["fn"](names["a_torch"], names["b_torch"])
    expected = str(jax.tree.map(lambda tensor: jax.numpy.asarray(tensor.numpy()), results))
    wanted, found = source.count("\nprint(jax_fn("), printed.count(expected)
    if not found == wanted > 0:
        raise DifferenceError(f"{found} of {wanted} printed results are those of PyTorch:\n{printed}\n{expected}")


def total_error(source: str, names: dict[str, Any], printed: str) -> None:
    """The sum of errors that the notebook computes is small beside the gradients."""
    size = sum(float(np.linalg.norm(g)) for g in names["gs_torch"].values())
    if not float(names["total_err"]) <= 1e-4 * size or size == 0:
        raise DifferenceError(f"{printed.strip()}, of gradients of size {size:.4e}")


def errors_of_each(source: str, names: dict[str, Any], printed: str) -> None:
    """Each error that the notebook computes is small beside its gradient, or beside the largest of them."""
    sizes = {name: float(gradient.norm()) for name, gradient in names["gs_torch"].items()}
    largest = max(sizes.values())
    for name, error in names["errors"].items():
        if not error <= 1e-3 * sizes[name] + 1e-5 * largest:
            raise DifferenceError(f"{name}: an error of {error:.4e} in a gradient of size {sizes[name]:.4e}")
    if set(sizes) != set(names["errors"]) or largest == 0:
        raise DifferenceError("not every parameter has a gradient")


def finite_parameters(source: str, names: dict[str, Any], printed: str) -> None:
    """The training step changes every parameter, and all stay finite."""
    before, after = names["params_jax"], names["params_jax2"]
    wrong = [name for name in before if not np.isfinite(after[name]).all() or np.array_equal(before[name], after[name])]
    if wrong:
        raise DifferenceError(f"unchanged or not finite: {wrong}")


# After a cell with the text on the left, the function on the right compares.
COMPARISONS: dict[str, Callable[[str, dict[str, Any], str], None]] = {
    "\nprint(jax_fn(": printed_results,
    'print(f"Total error in gradient: ': total_error,
    "\npprint(errors)": errors_of_each,
    "params_jax2 = apply_updates(": finite_parameters,
}


# --- the runs ------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of the code cells of one notebook. Cells are numbered as in the file, Markdown included."""

    passed: list[int] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)
    compared: dict[int, list[str]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


def run(notebook: Path) -> Outcome:
    """Run the code cells of a notebook in order. The first one that fails ends the run."""
    outcome, names = Outcome(), {"__name__": "__main__"}
    torch.manual_seed(0)
    for number, cell in enumerate(json.loads(notebook.read_text())["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or not source.strip():
            continue
        reason = next((why for text, why in LEFT_OUT.items() if text in source), None)
        if reason:
            outcome.left_out[number] = reason
            continue
        code = compile(IMPORT.sub("from t2j_autodiff import ", source), f"{notebook.name}[{number}]", "exec")
        try:
            with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the predecessor's names
                exec(code, names)
            comparisons = [compare for text, compare in COMPARISONS.items() if text in source]
            for compare in comparisons:
                compare(source, names, printed.getvalue())
        except Exception as error:
            outcome.failed[number] = f"{type(error).__name__}: {error}"
            break
        outcome.passed.append(number)
        if comparisons:
            outcome.compared[number] = [compare.__name__ for compare in comparisons]
    return outcome


def notebooks_of(source: Path) -> list[Path]:
    """The notebooks of a checkout, without copies."""
    found: dict[str, Path] = {}
    for path in sorted(source.rglob("*.ipynb")):
        found[path.read_text()] = path
    return sorted(found.values())


def summary(source: Path, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """What `results.json` has."""
    commit = subprocess.run(
        ["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "source": {"repository": "rdyro/torch2jax", "commit": commit.stdout.strip() or None},
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "notebooks": {
            name: {
                "x64": name in NEEDS_X64,
                "code_cells": len(of.passed) + len(of.left_out),
                "passed": len(of.passed),
                "compared_with_torch": {str(cell): names for cell, names in of.compared.items()},
                "left_out": {str(cell): reason for cell, reason in of.left_out.items()},
            }
            for name, of in outcomes.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all notebooks of a checkout; 1 if a cell fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="a checkout of the repository")
    parser.add_argument("--output", type=Path, help="where the counts are written, if no cell fails")
    options = parser.parse_args(arguments)
    notebooks = notebooks_of(options.source)
    if not notebooks:
        parser.error(f"{options.source} has no notebooks")
    sys.path.append(str(Path(__file__).parents[1] / "corpus"))
    importlib.import_module("cases._torchvision_operators")  # on a CPU torchvision cannot be imported without them
    outcomes = {}
    for notebook in notebooks:
        with replaced_downloads():
            jax.config.update("jax_enable_x64", notebook.name in NEEDS_X64)
            outcome = outcomes[notebook.name] = run(notebook)
        print(f"{notebook.name}: {len(outcome.passed)} cells passed, {len(outcome.left_out)} left out")
        for cell, reason in [*outcome.left_out.items(), *outcome.failed.items()]:
            print(f"  cell {cell} {'FAILED' if cell in outcome.failed else 'left out'}: {reason}")
    failed = any(outcome.failed for outcome in outcomes.values())
    if options.output and not failed:
        options.output.write_text(json.dumps(summary(options.source, outcomes), indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
