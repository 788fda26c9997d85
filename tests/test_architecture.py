"""The layers of each package: who imports whom, who reads whose attributes, and who may touch what."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent

# Lowest layer first: a module imports from layers below its own, and from modules of its own that do not import it.
LAYERS = {
    package: layers.split()
    for package, layers in {
        "t2j_core": "_base _compat _signature _modules _random _infer _compile _run _lowering _wrap _diagnose "
        "extend testing __init__ __main__",
        "t2j_autodiff": "_base _compat _workarounds _derivatives _linearity _batching _residuals _rules _wrap "
        "extend __init__",
        "t2j_dist": "_specs _wanted _texts _plan _decide _options _builder _function _autodiff _torch2jax __init__",
    }.items()
}
MAY_IMPORT = {
    "t2j_core": {"jax", "jaxlib", "torch", "numpy", "typing_extensions", "triton"},  # torch brings the last two
    "t2j_autodiff": {"jax", "torch", "numpy", "t2j_core"},
    "t2j_dist": {"jax", "torch", "numpy", "t2j_core", "t2j_autodiff"},
}
PACKAGES = list(LAYERS)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


class Module(NamedTuple):
    package: str
    name: str  # `_run.lending`; a folder has the name of its `__init__`
    path: Path

    def __str__(self) -> str:
        return f"{self.package}.{self.name}"

    @property
    def tree(self) -> ast.Module:
        return parsed(self.path)

    @property
    def layer(self) -> int:
        return LAYERS[self.package].index(self.name.split(".")[0])

    def nodes(self, kind: type) -> list:
        return [node for node in ast.walk(self.tree) if isinstance(node, kind)]


def modules_of(package: str) -> list[Module]:
    folder = ROOT / "packages" / package.replace("_", "-") / "src" / package
    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found.append(Module(package, ".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts), path))
    return found


MODULES = {module.package + "." + module.name: module for package in PACKAGES for module in modules_of(package)}
every_module = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)


def imports(module: Module) -> Iterator[tuple[str, list[str], int]]:
    """(full name of a module, names that are imported from it, line) of every import."""
    is_folder = module.path.name == "__init__.py"
    parts = [module.package, *module.name.split(".")][: None if is_folder and module.name != "__init__" else -1]
    for node in module.nodes((ast.Import, ast.ImportFrom)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, [], node.lineno) for alias in node.names)
        else:
            above = parts[: len(parts) - node.level + 1] if node.level else []
            yield ".".join([*above, *filter(None, [node.module])]), [alias.name for alias in node.names], node.lineno


def imported(module: Module) -> Iterator[tuple[Module, int]]:
    """The modules of the same package that a module imports."""
    for target, names, line in imports(module):
        for name in [f"{target}.{n}" for n in names] or [target]:
            found = MODULES.get(name) or MODULES.get(target)
            if found is not None and found.package == module.package and found != module:
                yield found, line


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_a_layer(package):
    assert {module.name.split(".")[0] for module in modules_of(package)} == set(LAYERS[package])


@every_module
def test_a_module_imports_from_lower_layers_and_its_own(module):
    for target, line in imported(module):
        assert target.layer <= module.layer, f"{module}:{line} imports {target}, which is above it"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_through_others(package):
    below = {module.name: {target.name for target, _ in imported(module)} for module in modules_of(package)}
    below = {name: {t for t in targets if not name.startswith(f"{t}.")} for name, targets in below.items()}
    while below:
        free = {name for name, targets in below.items() if not targets & set(below)}
        assert free, f"these import each other: {sorted(below)}"
        below = {name: targets for name, targets in below.items() if name not in free}


@functools.cache
def attributes_of(tree: ast.AST) -> set[str]:
    """The names that classes in a module define as methods, fields, or attributes of `self`."""
    found = set()
    for owner in ast.walk(tree):
        if isinstance(owner, ast.ClassDef):
            for node in ast.walk(owner):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    found.add(node.name)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    found.add(node.id)
                elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    found.add(node.attr)
    return found


def reads(module: Module) -> Iterator[tuple[str, int]]:
    for node in module.nodes(ast.Attribute):
        if isinstance(node.ctx, ast.Load) and not node.attr.startswith("__"):
            yield node.attr, node.lineno


# What objects have that are not ours, and may have the names of attributes of ours. Makes no array of JAX, which would
# start its devices before other tests have chosen them.
_SAMPLES = (
    *(torch.ones(1), np.ones(1), jax.Array, jax, jax.tree, jnp, torch, torch.nn.Module(), {}, [], "", set(), object),
)
_CLASSES = (
    *(inspect.Signature, inspect.Parameter, inspect.BoundArguments, slice, property, types.FunctionType),
    torch.autograd.forward_ad.UnpackedDualTensor,
    torch.fx.Node,
)
OF_OTHERS = {name for sample in _SAMPLES for name in (*dir(sample), *dir(type(sample)))}
OF_OTHERS |= {name for owner in _CLASSES for name in dir(owner)}
OF_OTHERS |= {
    "device",
    "key",
    "cache",
    "path",
    "empty",
    "operation",
    "attributes",
    "args",
    "kwargs",
    "spec",
}


@every_module
def test_a_module_reads_no_attribute_that_only_a_higher_layer_defines(module):
    """Of an object that comes from above, a lower layer knows what its own protocols say."""
    own, above = set(OF_OTHERS), set()
    for other in modules_of(module.package):
        (above if other.layer > module.layer else own).update(attributes_of(other.tree))
    found = [f"{name} (line {line})" for name, line in reads(module) if name in above - own]
    assert not found, f"{module} reads {found}"


@every_module
def test_of_the_packages_below_only_public_names_are_used(module):
    others = [package for package in PACKAGES if package != module.package]
    for target, names, line in imports(module):
        package = target.split(".")[0]
        if package in others:
            assert PACKAGES.index(package) < PACKAGES.index(module.package), f"{module}:{line}"
            assert target in (package, f"{package}.extend"), f"{module}:{line} imports {target}"
            assert not [name for name in names if name.startswith("_")], f"{module}:{line}"


PRIVATE = re.compile(r"_[a-z]\w*")


@pytest.mark.parametrize("package", PACKAGES[1:])
def test_of_the_packages_below_no_private_attribute_is_read(package):
    """Not by inheritance either: `self._name` is of a class in the same package."""
    own = {name for module in modules_of(package) for name in attributes_of(module.tree)}
    below = {
        name
        for other in PACKAGES[: PACKAGES.index(package)]
        for module in modules_of(other)
        for name in attributes_of(module.tree)
        if PRIVATE.fullmatch(name)
    }
    found = [
        f"{module}:{line} {name}"
        for module in modules_of(package)
        for name, line in reads(module)
        if name in below and name not in own
    ]
    assert not found
    inherited = [owner for module in modules_of(package) for owner in heirs(module)]
    overridden = {name for owner in inherited for name in attributes_of(owner) & below}
    assert not overridden, f"{package} defines again what is private to a package below: {sorted(overridden)}"


def heirs(module: Module) -> Iterator[ast.ClassDef]:
    """Classes whose base is of a package below."""
    foreign = {name for target, names, _ in imports(module) for name in names if target.split(".")[0] != module.package}
    for node in module.nodes(ast.ClassDef):
        if any(name.id in foreign for base in node.bases for name in ast.walk(base) if isinstance(name, ast.Name)):
            yield node


@every_module
def test_nothing_but_the_declared_dependencies_is_imported(module):
    allowed = MAY_IMPORT[module.package] | sys.stdlib_module_names | {module.package}
    for target, _, line in imports(module):
        assert target.split(".")[0] in allowed, f"{module}:{line}"


@every_module
def test_only_compat_touches_what_jax_does_not_promise(module):
    if module.name.startswith("_compat"):
        return
    unpromised = re.compile(r"jax\.(_src|core|interpreters|extend|experimental)\b")
    for target, names, line in imports(module):
        for name in [target, *(f"{target}.{n}" for n in names)]:
            assert not unpromised.match(name), f"{module}:{line}"
    for node in module.nodes(ast.Attribute):
        assert not unpromised.match(ast.unparse(node)), f"{module}:{node.lineno}"


@every_module
def test_only_compat_asks_what_a_version_has(module):
    if module.name.startswith("_compat") or str(module) == "t2j_core._base.dtypes":
        return
    for node in module.nodes(ast.Call):
        if ast.unparse(node.func) in ("hasattr", "getattr"):
            assert not re.match(r"(jax|jaxlib|torch)\b", ast.unparse(node.args[0])), f"{module}:{node.lineno}"
    for node in module.nodes(ast.Compare):
        assert "__version__" not in ast.unparse(node), f"{module}:{node.lineno}"


@every_module
def test_only_the_lowering_imports_the_extension(module):
    uses = any("_native" in [target.split(".")[-1], *names] for target, names, _ in imports(module))
    assert uses <= (str(module) == "t2j_core._lowering.native")


FORBIDDEN = (
    *("print", "pprint", "breakpoint", "jax.config.update", "torch.set_", "sys.path."),
    *("os.environ.setdefault", "warnings.filterwarnings"),
)


@every_module
def test_library_code_neither_prints_nor_asserts_nor_configures(module):
    assert not [node.lineno for node in module.nodes(ast.Assert)]
    if module.name == "__main__":
        return
    for node in module.nodes(ast.Call):
        assert not ast.unparse(node.func).startswith(FORBIDDEN), f"{module}:{node.lineno}"


@every_module
def test_every_environment_switch_is_in_config(module):
    uses = re.search(r"os\.environ|getenv", module.path.read_text()) is not None
    assert uses <= (module.name == "_base.config")


@every_module
def test_a_module_is_short_or_says_why_it_is_not(module):
    lines = module.path.read_text().splitlines()
    assert len(lines) <= 300, f"{module} has {len(lines)} lines"


@every_module
def test_every_module_says_what_it_is(module):
    assert ast.get_docstring(module.tree), f"{module} has no docstring"


def test_parameters_have_types():
    """A bare `Any` says nothing of what a function takes."""
    parameters = [
        parameter
        for module in MODULES.values()
        for function in module.nodes((ast.FunctionDef, ast.AsyncFunctionDef))
        for parameter in ast.walk(function.args)
        if isinstance(parameter, ast.arg) and parameter.arg not in ("self", "cls")
    ]
    bare = [p for p in parameters if p.annotation is not None and ast.unparse(p.annotation) == "Any"]
    assert len(bare) < 0.08 * len(parameters)
