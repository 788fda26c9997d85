"""The direction of imports, who may touch what, and the public names."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest
import t2j_autodiff
import t2j_core

PACKAGE = Path(t2j_autodiff.__file__).parent

# Lowest floor first: a module imports only from floors below its own.
FLOORS = [
    {"_embeddings", "_callers"},
    {"_level_writes"},
    {"_batch_mends"},
    {"_errors", "_config", "_compat", "_keywords", "_norms", "_tickets"},
    {"_example_numbers"},
    {"_kept"},
    {"_waiting"},
    {"_shared", "_forward_level"},
    {"_differentiate"},
    {"_agreement", "_adjoint", "_plain"},
    {"_pushforward"},
    {"_reverse_ways"},
    {"_forward_mode", "_linearity"},
    {"_batching"},
    {"_rehearsal"},
    {"_residuals", "_graph", "_shown", "_from_examples"},
    {"_linearize", "_values_alone"},
    {"_linear"},
    {"_rules"},
    {"_wrap"},
    {"__init__", "extend"},
]
FLOOR = {module: number for number, floor in enumerate(FLOORS) for module in floor}
SOURCES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}


def imports(name: str):
    """(module, names, line) of every import, relative ones with their dots."""
    for node in ast.walk(ast.parse(SOURCES[name].read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, [], node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), [alias.name for alias in node.names], node.lineno


def nodes(name: str, kind: type):
    return [node for node in ast.walk(ast.parse(SOURCES[name].read_text())) if isinstance(node, kind)]


def test_every_module_has_its_floor():
    assert set(SOURCES) == set(FLOOR)


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_imports_from_lower_floors_only(name):
    for module, names, line in imports(name):
        if module.startswith("."):
            for target in [module[1:]] if module != "." else names:
                assert FLOOR[target] < FLOOR[name], f"{name}:{line} imports {target}, which is not below it"


@pytest.mark.parametrize("name", SOURCES)
def test_of_core_only_public_names_and_extend_are_imported(name):
    for module, names, line in imports(name):
        if module.split(".")[0] != "t2j_core":
            continue
        assert module in ("t2j_core", "t2j_core.extend"), f"{name}:{line}"
        assert not [n for n in names if n.startswith("_")], f"{name}:{line}"


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_but_the_declared_dependencies_is_imported(name):
    allowed = {"jax", "torch", "numpy", "t2j_core"} | sys.stdlib_module_names
    for module, _, line in imports(name):
        if not module.startswith("."):
            assert module.split(".")[0] in allowed, f"{name}:{line}"


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"_compat"}))
def test_only_compat_touches_what_jax_does_not_promise(name):
    unpromised = re.compile(r"jax\.(_src|core|interpreters|extend|experimental)\b")
    for module, names, line in imports(name):
        for target in [module, *(f"{module}.{n}" for n in names)]:
            assert not unpromised.match(target), f"{name}:{line}"
    for node in nodes(name, ast.Attribute):
        assert not unpromised.match(ast.unparse(node)), f"{name}:{node.lineno}"


@pytest.mark.parametrize("name", SOURCES)
def test_only_compat_of_core_asks_what_a_version_has(name):
    for node in nodes(name, ast.Call):
        if ast.unparse(node.func) in ("hasattr", "getattr"):
            assert not re.match(r"(jax|jaxlib|torch)\b", ast.unparse(node.args[0])), f"{name}:{node.lineno}"


def test_no_private_module_of_jax_is_imported():
    for name in SOURCES:
        assert "jax._src" not in SOURCES[name].read_text()


@pytest.mark.parametrize("name", SOURCES)
def test_library_code_neither_prints_nor_asserts_nor_configures(name):
    forbidden = ("print", "breakpoint", "jax.config.update", "torch.set_", "sys.path.", "warnings.filterwarnings")
    for node in nodes(name, ast.Call):
        assert not ast.unparse(node.func).startswith(forbidden), f"{name}:{node.lineno}"
    assert not nodes(name, ast.Assert)


@pytest.mark.parametrize("name", SOURCES)
def test_every_environment_switch_is_in_config(name):
    uses = re.search(r"os\.environ|getenv", SOURCES[name].read_text()) is not None
    assert uses <= (name == "_config")


def public(module) -> set[str]:
    """What `module` offers: names without underscore that are no modules."""
    return {n for n, value in vars(module).items() if not n.startswith("_") and not inspect.ismodule(value)}


def test_the_public_names_are_those_of_core_and_these():
    new = {"DepthError", "NonDifferentiableError", "DifferentiableFunction", "checkpoint_policy", "clear_residuals"}
    assert public(t2j_autodiff) == public(t2j_core) | new | {"torch2jax_with_vjp"}


def test_importing_this_package_changes_nothing_in_core():
    f = t2j_core.torch2jax(lambda x: x * 2)
    import jax
    import jax.numpy as jnp

    with pytest.raises(t2j_core.TransformError, match="t2j-autodiff"):
        jax.grad(lambda x: f(x).sum())(jnp.ones(3))


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert t2j_autodiff.__version__ == version("t2j-autodiff")
