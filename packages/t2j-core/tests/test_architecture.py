"""The direction of imports, who may touch what, and the public names."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest
import t2j_core
import t2j_core.extend
import t2j_core.testing

PACKAGE = Path(t2j_core.__file__).parent

# Lowest floor first: a module imports only from floors below its own.
FLOORS = [
    {
        "_errors",
        "_garbage",
        "_in_flight",
        "_bounded",
        "_parts",
        "_memory",
        "_shaped_by_values",
        "_module_use",
        "_frames",
        "_allowance",
        "_debug_nans",
    },
    {"_deep_copy"},
    {"_config", "_compat", "_clashes", "_jax_inside", "_keywords", "_hints", "_public"},
    {"_class_level"},
    {"_containers"},
    {
        "_dtypes",
        "_pytree",
        "_streams",
        "_rng",
        "_orphans",
        "_originals",
        "_pointers",
        "_dataless",
        "_dense",
        "_indices",
    },
    {"_misplaced"},
    {"_convert", "_variables", "_randomness"},
    {"_signature"},
    {"_constrained"},
    {"_advice", "_made_up", "_constants", "_trees", "_apart", "_on_meta", "_returned"},
    {"_unkeyed", "_further"},
    {"_runs"},
    {"_export", "_redirect", "_faults", "_infer", "_arguments", "_lending", "_skeleton", "_once", "_options"},
    {"_hooks"},
    {"_torchfn"},
    {"_host", "_explain", "_in_place"},
    {"_primitive"},
    {"_wrap"},
    {"_module_call"},
    {"_module"},
    {"_info"},
    {"extend", "testing"},
    {"__init__"},
    {"__main__"},
]
FLOOR = {module: number for number, floor in enumerate(FLOORS) for module in floor}
SOURCES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}


def imports(tree: ast.AST):
    """(module, names, line) of every import, relative ones with their dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, [], node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), [alias.name for alias in node.names], node.lineno


def parsed(name: str) -> ast.AST:
    return ast.parse(SOURCES[name].read_text())


def test_every_module_has_its_floor():
    assert set(SOURCES) == set(FLOOR)


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_imports_from_lower_floors_only(name):
    for module, names, line in imports(parsed(name)):
        if not module.startswith("."):
            assert not module.startswith("t2j_core"), f"{name}:{line} imports its own package by its full name"
            continue
        targets = [module[1:]] if module != "." else [n for n in names if n in FLOOR or n == "_native"]
        for target in targets:
            if target != "_native":
                assert FLOOR[target] < FLOOR[name], f"{name}:{line} imports {target}, which is not below it"


@pytest.mark.parametrize("name", SOURCES)
def test_only_the_primitive_imports_the_extension(name):
    uses = any("_native" in module or "_native" in names for module, names, _ in imports(parsed(name)))
    assert uses == (name == "_primitive")


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"_compat"}))
def test_only_compat_touches_what_jax_does_not_promise(name):
    unpromised = re.compile(r"jax\.(_src|core|interpreters|extend|experimental)\b")
    tree = parsed(name)
    for module, names, line in imports(tree):
        for target in [module, *(f"{module}.{n}" for n in names)]:
            assert not unpromised.match(target), f"{name}:{line}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert not unpromised.match(ast.unparse(node)), f"{name}:{node.lineno}"


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"_compat"}))
def test_only_compat_asks_for_versions(name):
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.Compare):
            assert "__version__" not in ast.unparse(node), f"{name}:{node.lineno}"


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"_compat", "_dtypes"}))
def test_only_compat_of_core_asks_what_a_version_has(name):
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr"):
            assert not re.match(r"(jax|jaxlib|torch)\b", ast.unparse(node.args[0])), f"{name}:{node.lineno}"


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"__main__"}))
def test_library_code_does_not_print(name):
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "pprint", "breakpoint"), f"{name}:{node.lineno}"


@pytest.mark.parametrize("name", SOURCES)
def test_library_code_does_not_assert(name):
    assert not [node.lineno for node in ast.walk(parsed(name)) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("name", SOURCES)
def test_library_code_does_not_change_global_configuration(name):
    forbidden = ("jax.config.update", "torch.set_", "sys.path.", "os.environ.setdefault", "warnings.filterwarnings")
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.Call):
            assert not ast.unparse(node.func).startswith(forbidden), f"{name}:{node.lineno}"


@pytest.mark.parametrize("name", SOURCES)
def test_every_environment_switch_is_in_config(name):
    uses = re.search(r"os\.environ|getenv", SOURCES[name].read_text()) is not None
    assert uses <= (name == "_config")


def test_sister_packages_are_not_known_here():
    for name in SOURCES:
        for module, _, line in imports(parsed(name)):
            assert module.split(".")[0] not in ("t2j_autodiff", "t2j_dist"), f"{name}:{line}"


def test_nothing_but_the_declared_dependencies_is_imported():
    # `typing_extensions` is for type checkers only, which bring it; torch requires it.
    allowed = {"jax", "jaxlib", "torch", "numpy", "typing_extensions"} | sys.stdlib_module_names
    for name in SOURCES:
        for module, _, line in imports(parsed(name)):
            if not module.startswith("."):
                assert module.split(".")[0] in allowed, f"{name}:{line}"


# --- the public names ----------------------------------------------------------------------------------------------


def public(module) -> list[str]:
    """What `module` offers: names without underscore that are no modules."""
    return sorted(
        name for name, value in vars(module).items() if not name.startswith("_") and not inspect.ismodule(value)
    )


def test_the_public_names():
    assert public(t2j_core) == sorted(
        [
            *("torch2jax", "torch2jax_without_vjp", "module2jax", "load_variables", "TorchFunction"),
            *("j2t", "t2j", "tree_j2t", "tree_t2j", "dtype_j2t", "dtype_t2j", "Size"),
            *("last_error", "environment_info"),
            *("T2jError", "ArgumentError", "DTypeError", "OutputError", "DataDependentShapeError"),
            *("TensorMutationError", "TensorEscapeError", "JaxInsideTorchError", "TransformError"),
            *("ShardingError", "ExportError", "T2jWarning", "PerformanceWarning"),
        ]
    )


def test_the_names_for_sister_packages():
    assert public(t2j_core.extend) == sorted(
        [
            *("TorchFn", "Signature", "Leaf", "Outputs", "flat_signature", "argument_paths", "canonical", "CLONE"),
            *("Lending", "check_example"),
            *("declared_outputs", "leaves_of", "merger", "split", "explicit_spec", "manual_axes", "reshard", "Tracer"),
            *("TorchFunction", "Options", "argument_numbers", "are_at", "functional"),
            *("call_primitive", "torch_call", "torch_call_p", "varying_axes", "numbers_in", "storage_uses"),
            *("batched_mesh_axes", "DispatchMode", "modules_in_use", "torch_device", "torch_gpus"),
            *(
                "apart",
                "as_written",
                "transposing_call",
                "check_choice",
                "checked_bool",
                "checked_integer",
                "checked_examples",
            ),
            *("hide_frames", "Keywords", "refused", "generator_states", "current_pair", "public", "options_of"),
            *("describe", "warn", "grouped", "heading", "short_avals", "P", "remember", "turns"),
        ]
    )


def test_the_names_for_tests():
    assert sorted(t2j_core.testing.__all__) == sorted(
        ["abi_layout", "assert_nothing_escaped", "collect", "counters", "live_functions", "noop"]
    )


def test_the_stub_of_the_extension_is_complete():
    stub = ast.parse((PACKAGE / "_native.pyi").read_text())
    declared = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    native = sys.modules["t2j_core._native"]
    assert declared == {name for name in vars(native) if not name.startswith("_")}


@pytest.mark.parametrize("name", [n for n in vars(t2j_core) if n.endswith(("Error", "Warning"))])
def test_errors_are_of_the_family_and_of_a_builtin_kind(name):
    error = getattr(t2j_core, name)
    if name.endswith("Warning"):
        assert issubclass(error, UserWarning)
    else:
        assert issubclass(error, t2j_core.T2jError)
        builtin = (TypeError, ValueError, RuntimeError, NotImplementedError)
        assert name == "T2jError" or issubclass(error, builtin)


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert t2j_core.__version__ == version("t2j-core")
