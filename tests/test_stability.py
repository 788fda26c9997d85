"""What `docs/stability.md` promises: its tests exist, and lowest versions, siblings and deprecations are as it says."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
import tomllib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import t2j_autodiff
import t2j_core
import t2j_dist
import torch
from common import run_python
from t2j_core._compat import versions
from test_guarantees import check_that_tests_exist

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "stability.md"
ROWS = re.findall(r"^\| (.*) \| (`.*`) \|$", PAGE.read_text().partition("## Which tests")[2], flags=re.M)
PROJECTS = {
    path.parent.name: tomllib.loads(path.read_text())["project"] for path in ROOT.glob("packages/*/pyproject.toml")
}
MODULES = (t2j_core, t2j_autodiff, t2j_dist)


def lowest(package: str, dependency: str) -> str:
    """The lowest version of a dependency that a package declares."""
    (line,) = [line for line in PROJECTS[package]["dependencies"] if re.match(rf"{dependency}\b", line)]
    return re.search(r">=([\d.]+)", line)[1]


def as_text(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version[:-1] if version[-1] == 0 else version))


@pytest.mark.parametrize(("rule", "tests"), ROWS, ids=[rule for rule, _ in ROWS])
def test_a_rule_names_tests_that_exist(rule, tests):
    check_that_tests_exist(tests)


def test_there_are_rules():
    assert len(ROWS) >= 15


def test_the_lowest_versions_are_those_of_the_metadata():
    for package in PROJECTS:
        assert PROJECTS[package]["requires-python"] == ">=3.11"
        assert lowest(package, "torch") == as_text(versions.TORCH_FLOOR)
    assert lowest("t2j-core", "jax") == lowest("t2j-autodiff", "jax") == as_text(versions.JAX_FLOOR)
    jax, dist, torch = lowest("t2j-core", "jax"), lowest("t2j-dist", "jax"), lowest("t2j-core", "torch")
    wanted = f"t2j needs Python 3.11, jax {jax} (t2j-dist {dist}) and torch {torch}, or newer."
    assert wanted in " ".join(PAGE.read_text().split())


@pytest.mark.parametrize(("name", "floor"), [("jax", versions.JAX_FLOOR), ("torch", versions.TORCH_FLOOR)])
def test_an_older_version_is_refused(name, floor):
    versions._check_floor(name, ".".join(map(str, floor)), floor)
    versions._check_floor(name, f"{floor[0]}.{floor[1] + 1}.0+cpu", floor)
    with pytest.raises(ImportError, match=rf"needs {name} .*\n  Got: {name} {floor[0]}.{floor[1] - 1}.9"):
        versions._check_floor(name, f"{floor[0]}.{floor[1] - 1}.9", floor)


def test_siblings_are_declared_with_a_range():
    found = 0
    for project in PROJECTS.values():
        extras = project["optional-dependencies"].values()
        for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
            if line.startswith("t2j"):
                major, minor, following = map(int, re.fullmatch(r"t2j-\w+>=(\d+)\.(\d+),<0\.(\d+)", line).groups())
                assert (major, following) == (0, minor + 1), line
                found += 1
    assert found == 3


def test_the_deprecated_names_are_those_of_the_page():
    """Functions whose source warns of their deprecation."""
    deprecated = set()
    for module in MODULES:
        for name, value in vars(module).items():
            if inspect.isfunction(value) and "DeprecationWarning" in code_of(value):
                deprecated.add(name)
    listed = re.search(r"present one name is deprecated: `(\w+)`", " ".join(PAGE.read_text().split()))
    assert deprecated == {listed[1]}


def code_of(function) -> str:
    """The source of a function without its docstring."""
    (tree,) = ast.parse(inspect.getsource(function)).body
    return ast.unparse(tree.body[bool(ast.get_docstring(tree)) :])


def test_a_pickled_function_runs_in_another_process(tmp_path):
    x = jnp.arange(3.0)
    for number, module in enumerate(MODULES):
        (tmp_path / str(number)).write_bytes(pickle.dumps(module.torch2jax(torch.sin)))
    code = "import pickle, sys, jax.numpy as jnp\nfor path in sys.argv[1:]:\n"
    code += "    print(*pickle.load(open(path, 'rb'))(jnp.arange(3.0)).tolist())\n"
    printed = run_python(code, *(str(tmp_path / str(number)) for number in range(len(MODULES)))).stdout
    values = [[float(value) for value in line.split()] for line in printed.splitlines()]
    np.testing.assert_allclose(values, [np.sin(x)] * len(MODULES), rtol=1e-6)
