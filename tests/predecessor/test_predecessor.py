"""How the notebooks of `wrap_torch2jax` are run, on a small notebook, and the results that are committed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import predecessor
import pytest
import torch

CELLS = [
    ("markdown", "Two frameworks"),
    ("code", "import torch\nimport jax.numpy as jnp\nfrom torch2jax import torch2jax, tree_t2j"),
    ("code", "import t2j_autodiff\nassert torch2jax is t2j_autodiff.torch2jax"),
    ("code", "torch.cuda.synchronize()\nraise AssertionError('not run')"),
    ("code", ""),
    (
        "code",
        "def fn(a, b):\n    print('called')\n    return a + b\n\n"
        "a_torch, b_torch = torch.randn(3), torch.randn(3)\na_jax, b_jax = tree_t2j((a_torch, b_torch))\n"
        "jax_fn = torch2jax(fn, a_torch, b_torch)\nprint(jax_fn(a_jax, b_jax))",
    ),
]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*cells: tuple[str, str], name: str = "tiny.ipynb") -> Path:
        path = tmp_path / name
        lines = [{"cell_type": kind, "source": text.splitlines(keepends=True)} for kind, text in cells]
        path.write_text(json.dumps({"cells": lines}))
        return path

    return write


def test_cells_run_in_order_with_the_import_changed(write: Write) -> None:
    outcome = predecessor.run(write(*CELLS))
    assert outcome.failed == {}
    assert outcome.passed == [1, 2, 5]
    assert outcome.left_out == {3: "needs a GPU"}
    assert outcome.compared == {5: ["printed_results"]}


def test_a_value_that_differs_from_pytorch_fails(write: Write) -> None:
    kind, source = CELLS[-1]
    wrong = source.replace("torch2jax(fn,", "torch2jax(lambda a, b: fn(a, b) * (1 + 1e-3),")
    outcome = predecessor.run(write(*CELLS[:-1], (kind, wrong)))
    assert outcome.failed.keys() == {5}
    assert outcome.failed[5].startswith("DifferenceError: 0 of 1 printed results")


def test_the_first_failure_ends_a_notebook(write: Write) -> None:
    outcome = predecessor.run(write(("code", "one = 1"), ("code", "one / 0"), ("code", "two = 2")))
    assert (outcome.passed, outcome.failed) == ([0], {1: "ZeroDivisionError: division by zero"})


def test_gradients_are_compared() -> None:
    gradients = {"w": torch.full((2,), 3.0)}
    predecessor.errors_of_each("", {"gs_torch": gradients, "errors": {"w": 1e-4}}, "")
    predecessor.total_error("", {"gs_torch": gradients, "total_err": 1e-5}, "")
    for error in (1.0, float("nan")):
        with pytest.raises(predecessor.DifferenceError):
            predecessor.errors_of_each("", {"gs_torch": gradients, "errors": {"w": error}}, "")
        with pytest.raises(predecessor.DifferenceError):
            predecessor.total_error("", {"gs_torch": gradients, "total_err": error}, "")
    with pytest.raises(predecessor.DifferenceError, match="not every parameter"):
        predecessor.errors_of_each("", {"gs_torch": gradients, "errors": {}}, "")
    parameters = {"w": np.ones(2)}
    predecessor.finite_parameters("", {"params_jax": parameters, "params_jax2": {"w": np.zeros(2)}}, "")
    for after in (parameters, {"w": np.array([0.0, np.nan])}):
        with pytest.raises(predecessor.DifferenceError, match="unchanged or not finite"):
            predecessor.finite_parameters("", {"params_jax": parameters, "params_jax2": after}, "")


def test_copies_of_a_notebook_run_once(write: Write, tmp_path: Path) -> None:
    write(CELLS[0], name="a.ipynb")
    write(CELLS[0], name="b.ipynb")
    write(CELLS[1], name="c.ipynb")
    assert [path.name for path in predecessor.notebooks_of(tmp_path)] == ["b.ipynb", "c.ipynb"]


def test_the_committed_results_have_no_cell_without_an_outcome() -> None:
    results = json.loads((Path(__file__).parent / "results.json").read_text())
    compared = set()
    for of in results["notebooks"].values():
        assert of["passed"] > 0
        assert of["passed"] + len(of["left_out"]) == of["code_cells"]
        assert set(of["left_out"].values()) <= set(predecessor.LEFT_OUT.values())
        assert of["compared_with_torch"], "a notebook that compares nothing proves little"
        compared.update(name for names in of["compared_with_torch"].values() for name in names)
    assert compared == {compare.__name__ for compare in predecessor.COMPARISONS.values()}
