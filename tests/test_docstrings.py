"""Every public name is documented and typed, and every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import warnings

import pytest
from t2j_core._base.public import ADDED_BY, OF_MODULES, WRAPPERS

PACKAGES = [importlib.import_module(name) for name in ("t2j_core", "t2j_autodiff", "t2j_dist")]
WITHOUT_TRITON = () if importlib.util.find_spec("triton") else ("philox",)
NAMES = [
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if module.name.rpartition(".")[2] not in ("_native", "__main__", *WITHOUT_TRITON)
]
PUBLIC = {
    f"{package.__name__}.{name}": value
    for package in PACKAGES
    for name, value in vars(package).items()
    if not name.startswith("_") and not inspect.ismodule(value)
}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_module_run(name):
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = [len(test.examples) for name in NAMES for test in finder.find(importlib.import_module(name))]
    assert sum(found) > 45


@pytest.mark.parametrize("value", PUBLIC.values(), ids=PUBLIC)
def test_a_public_name_is_documented(value):
    doc = inspect.getdoc(value)
    assert doc
    summary = doc.split("\n\n")[0]
    assert len(summary) > 15
    assert summary.rstrip().endswith((".", "`"))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_public_function_has_an_example_and_types(function):
    assert doctest.DocTestParser().get_examples(inspect.getdoc(function))
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name


@pytest.mark.parametrize("name", NAMES)
def test_a_module_and_its_definitions_are_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for attribute, value in vars(module).items():
        if getattr(value, "__module__", None) != name or attribute.startswith("_"):
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__doc__, attribute


@pytest.mark.parametrize("function", WRAPPERS)
def test_errors_know_the_options_that_each_package_adds(function):
    core, autodiff, dist = (set(inspect.signature(getattr(package, function)).parameters) for package in PACKAGES)
    added = {package: set(names) for package, names in ADDED_BY.items()}
    assert added == {"t2j-autodiff": autodiff - core, "t2j-dist": dist - autodiff}


def test_errors_know_the_options_of_modules():
    of_wrappers = [inspect.signature(getattr(PACKAGES[0], name)).parameters for name in ("module2jax", "torch2jax")]
    assert set(OF_MODULES) == set(of_wrappers[0]) - set(of_wrappers[1]) - {"module"}
