"""The runner of JAX's tests: what is replaced in a test module, and what becomes of tests that fail or die."""

from __future__ import annotations

import ast
import collections
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax_suite
import numpy as np
import pytest
import torch_functions
from jax import lax
from jax_suite_plugin import PREFIX, Finder, Log, Rewriter
from torch_functions import COUNTS, TORCH

LISTED = jax_suite.load_exceptions()


# --- what is replaced ----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_counts_yet() -> None:
    COUNTS.clear()


def rewritten(source: str) -> Any:
    """The value of an expression in a rewritten module."""
    names = {"jnp": jnp, "lax": lax, "jax": jax, "np": np}
    names |= {
        PREFIX + function.__name__: function for function in (torch_functions.in_place_of, torch_functions.matmul)
    }
    tree = ast.fix_missing_locations(Rewriter().visit(ast.parse(source, mode="eval")))
    return eval(compile(tree, "a test module", "eval"), names)


def calls_torch(function: Callable[..., Any], *args: Any) -> bool:
    return "torch_call" in str(jax.make_jaxpr(function)(*args))


def test_names_are_replaced_in_the_module_only() -> None:
    for name in ("jnp.sin", "jax.numpy.sin", "lax.sin", "jax.lax.sin"):
        assert calls_torch(rewritten(f"lambda x: {name}(x)"), 1.0), name
        assert rewritten(name) is rewritten(name), "a cache of JAX has one entry for each function"
    for name in ("np.sin", "jnp.sqrt", "np.ones(2).dot(np.ones(2))"):
        assert rewritten(name) == eval(name), name
    assert not calls_torch(jnp.sin, 1.0)
    assert rewritten("jnp.sin").__name__ == "sin"


@pytest.mark.parametrize("module", ["jnp", "lax"])
@pytest.mark.parametrize("name", torch_functions.UNARY)
def test_unary_functions_are_those_of_jax(module: str, name: str) -> None:
    x = np.float32([0.3, 0.9])
    real = eval(f"{module}.{name}")
    np.testing.assert_allclose(rewritten(f"{module}.{name}")(x), real(x), rtol=1e-5)
    assert COUNTS == {TORCH: 1}


@pytest.mark.parametrize(
    ("source", "shapes"),
    [
        *(("jnp.dot", shapes) for shapes in [((), (2,)), ((3,), (3,)), ((2, 3), (3,)), ((5, 2, 3), (4, 3, 6))]),
        *(("jnp.matmul", shapes) for shapes in [((3,), (3,)), ((2, 3), (3,)), ((5, 2, 3), (5, 3, 4))]),
        *(("lax.dot", shapes) for shapes in [((3,), (3,)), ((2, 3), (3, 4))]),
        ("lambda a, b: a @ b", ((2, 3), (3, 4))),
    ],
)
def test_products_are_those_of_jax(source: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    np.testing.assert_allclose(rewritten(source)(*args), eval(source)(*args), rtol=1e-5)
    assert COUNTS == {TORCH: 1}


@pytest.mark.parametrize("args", [(2,), (2.5,), (True,), (1j,), (np.int8([1, 2]),), (np.float16([1.5]),)], ids=repr)
def test_types_of_results_are_those_of_jax(args: tuple[Any, ...]) -> None:
    assert jax.eval_shape(rewritten("jnp.sin"), *args) == jax.eval_shape(jnp.sin, *args)
    mixed = (args[0], np.ones(np.shape(args[0]), np.float32))
    assert jax.eval_shape(rewritten("jnp.dot"), *mixed) == jax.eval_shape(jnp.dot, *mixed)
    assert COUNTS == {TORCH: 2}


@pytest.mark.parametrize(
    "source",
    [
        "jnp.dot(np.ones(2), np.ones(2), preferred_element_type=jnp.float32)",
        "lax.dot(np.float32([1]), np.int32([1]))",
        "jnp.sin(np.ones(2, jnp.float8_e4m3fn))",
        "jnp.matmul(np.ones(2, bool), np.ones(2, bool))",
    ],
)
def test_what_torch_lacks_goes_to_the_real_function(source: str) -> None:
    np.testing.assert_array_equal(rewritten(source), eval(source))
    assert COUNTS.total() == 1
    assert TORCH not in COUNTS


@pytest.mark.parametrize(
    "source",
    [
        "jnp.sin([1.0])",
        "jnp.sin()",
        "lax.sin(1)",
        "jnp.dot(np.ones(2), np.ones(3))",
        "jnp.matmul(np.ones((2, 1, 1)), np.ones((3, 1, 1)))",
        "jnp.sin(jax.random.key(0))",
    ],
)
def test_what_jax_refuses_raises_its_error(source: str) -> None:
    with pytest.raises(Exception) as expected:
        eval(source)
    with pytest.raises(expected.type):
        rewritten(source)
    assert TORCH not in COUNTS


# --- what becomes of tests -----------------------------------------------------------------------------------------

TESTS = """
import unittest
import jax
import jax.numpy as jnp

class Tests(unittest.TestCase):
    def test_1_passes(self):
        self.assertAlmostEqual(float(jax.grad(jnp.sin)(0.0)), 1.0)

    def test_2_takes_another_branch(self):
        jnp.sin(1.0) if jnp.sqrt(1.0) > 1 else None

    def test_3_looks_at_primitives(self):
        self.assertNotIn("torch_call", str(jax.make_jaxpr(jnp.sin)(1.0)))

    def test_4_fails_anyway(self):
        self.assertEqual(float(jnp.cos(0.0)), 2.0)

    @unittest.skip("because")
    def test_5_is_skipped(self):
        jnp.sin(1.0)

    def test_6_uses_a_function(self):
        self.helper()

    def helper(self):
        return product(jnp.ones((2, 2)))

    def test_7_uses_nothing_that_is_replaced(self):
        jnp.sqrt(1.0)

def product(x):
    return x @ x
"""
OUTCOMES = {
    "1_passes": "passed",
    "2_takes_another_branch": "passed",
    "3_looks_at_primitives": "failed",
    "4_fails_anyway": "not counted",
    "5_is_skipped": "skipped",
    "6_uses_a_function": "passed",
    "7_uses_nothing_that_is_replaced": "not run",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a checkout of JAX has, with a small module of tests."""
    for folder in ("jax", "tests", "logs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "jax" / "version.py").write_text(f'_version = "{jax.__version__}"\n')
    (tmp_path / "tests" / "tiny_test.py").write_text(TESTS)
    return tmp_path


def start_here(arguments: Sequence[str], output: Path) -> int:
    """Run pytest in this process, which has imported JAX and torch."""
    try:
        return int(pytest.main([*arguments]))
    finally:
        sys.modules.pop("tiny_test")


def test_every_test_has_the_outcome_that_judges_the_bridge(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    results = jax_suite.Suite(checkout, checkout / "logs", start=start_here).run("tiny_test")
    assert {r.test.removeprefix("tiny_test::Tests::test_"): r.outcome for r in results} == OUTCOMES
    assert not any(isinstance(finder, Finder) for finder in sys.meta_path)
    run = jax_suite.summary(results, {"exceptions": []})
    assert run["modules"] == {"tiny_test": run["all"]}
    names = ("tests", "skipped", "fail_without_torch", "never_call_torch", "passed", "failed")
    assert [run["all"][name] for name in names] == [7, 1, 1, 2, 2, 1]
    assert run["all"]["torch_calls"] and not run["all"]["other_calls"]
    assert "| tiny_test | 7 | 1 | 1 | 2 | 2 | 1 |" in jax_suite.table(run)


def test_a_test_that_ends_the_process_has_failed_and_the_others_follow(checkout: Path) -> None:
    codes = iter([(["a", "b"], -11), (["c"], 1), (["c"], 0)])  # the last process has no replacements
    seen = []

    def start(arguments: Sequence[str], output: Path) -> int:
        log = Path(arguments[arguments.index("--log") + 1])
        seen.append(sorted(Log(log, 1.0, None).seen))
        output.touch()
        tests, code = next(codes)
        lines = [{"test": f"C::{test}"} | ended for test in tests for ended in ({}, ENDED)]
        log.open("a").writelines(json.dumps(line) + "\n" for line in (lines[:-1] if code < 0 else lines))
        return code

    results = jax_suite.Suite(checkout, checkout / "logs", start=start).run("m")
    assert [(r.test, r.outcome, r.reason) for r in results] == [
        ("m::C::a", "passed", ""),
        ("m::C::b", "not counted", "the process died (signal 11)"),  # not known to pass without replacements
        ("m::C::c", "passed", ""),
    ]
    assert seen == [[], ["C::a", "C::b"], []]


ENDED = {"outcome": "passed", "reason": "", "calls": {TORCH: 1}}


def test_pytest_that_does_not_run_is_an_error(checkout: Path) -> None:
    suite = jax_suite.Suite(checkout, checkout / "logs", start=lambda arguments, output: 4)
    with pytest.raises(RuntimeError, match="code 4; see .*tiny_test.txt"):
        suite.run("tiny_test")


def test_a_checkout_of_another_version_is_refused(checkout: Path) -> None:
    assert jax_suite.checked_source(checkout) == checkout
    version = checkout / "jax" / "version.py"
    version.write_text('_version = "0.0.1"\n')
    with pytest.raises(SystemExit, match=f"Expected: {jax.__version__}\nGot: 0.0.1"):
        jax_suite.checked_source(checkout)
    version.unlink()
    with pytest.raises(SystemExit, match="Got: no version"):
        jax_suite.checked_source(checkout)


# --- the list of exceptions ----------------------------------------------------------------------------------------


def result(outcome: str, test: str = "m::C::t") -> jax_suite.Result:
    return jax_suite.Result(test, outcome, "an error", {TORCH: 1})


def test_an_unlisted_failure_and_a_listed_pass_are_differences() -> None:
    listed = {"exceptions": [{"test": "m::C::t", "reason": "jaxpr", "error": ""}]}
    for outcome in ("failed", "skipped", "not counted"):
        assert jax_suite.differences([result(outcome)], listed) == []
    (passing,) = jax_suite.differences([result("passed")], listed)
    assert passing.startswith("listed, but passes: m::C::t")
    (unlisted,) = jax_suite.differences([result("failed", "m::C::u")], listed)
    assert unlisted == "not listed: m::C::u: an error"


def test_a_record_keeps_reasons_and_the_tests_that_did_not_run() -> None:
    listed = {"reasons": {}, "exceptions": [{"test": f"m::C::{t}", "reason": "jaxpr", "error": ""} for t in "tuv"]}
    after = jax_suite.record([result("failed"), result("passed", "m::C::u"), result("failed", "m::C::w")], listed)
    found = {entry["test"].removeprefix("m::C::"): entry["reason"] for entry in after["exceptions"]}
    assert found == {"t": "jaxpr", "v": "jaxpr", "w": jax_suite.UNKNOWN}


def test_every_exception_has_a_reason_that_is_described() -> None:
    tests = [entry["test"] for entry in LISTED["exceptions"]]
    assert tests == sorted(set(tests))
    assert {entry["reason"] for entry in LISTED["exceptions"]} == set(LISTED["reasons"])
    assert all(entry["error"] for entry in LISTED["exceptions"])
    assert {test.partition("::")[0] for test in tests} <= set(jax_suite.MODULES)


def test_the_committed_results_are_of_all_modules_and_of_the_list() -> None:
    run = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "jax_suite.json").read_text())
    assert sorted(run["modules"]) == sorted(jax_suite.MODULES)
    assert all(of["passed"] for of in run["modules"].values()), "a module without a test that calls torch is useless"
    failed = {name: of["failed"] for name, of in run["modules"].items() if of["failed"]}
    assert failed == collections.Counter(entry["test"].partition("::")[0] for entry in LISTED["exceptions"])
    assert run["failures_by_reason"] == collections.Counter(entry["reason"] for entry in LISTED["exceptions"])
