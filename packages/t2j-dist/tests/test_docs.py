"""Every example in a docstring runs, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import t2j_dist

MODULES = [m.name for m in pkgutil.iter_modules(t2j_dist.__path__) if m.name != "_native"]
PUBLIC = [name for name in vars(t2j_dist) if not name.startswith("_")]
FUNCTIONS = [name for name in PUBLIC if inspect.isfunction(getattr(t2j_dist, name))]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    module = importlib.import_module(f"t2j_dist.{name}")
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_examples():
    found = sum(
        len(test.examples)
        for name in MODULES
        for test in doctest.DocTestFinder().find(importlib.import_module(f"t2j_dist.{name}"))
    )
    assert found > 8


@pytest.mark.parametrize("name", [n for n in PUBLIC if not inspect.ismodule(getattr(t2j_dist, n))])
def test_a_public_name_is_documented(name):
    doc = inspect.getdoc(getattr(t2j_dist, name))
    assert doc
    summary = doc.split("\n\n")[0]
    assert len(summary) > 15
    assert summary.rstrip().endswith((".", "`"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_has_an_example_that_runs(name):
    function = getattr(t2j_dist, name)
    assert doctest.DocTestParser().get_examples(inspect.getdoc(function))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_is_typed(name):
    signature = inspect.signature(getattr(t2j_dist, name))
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name


@pytest.mark.parametrize("name", MODULES)
def test_a_module_and_its_definitions_are_documented(name):
    module = importlib.import_module(f"t2j_dist.{name}")
    assert module.__doc__
    for attribute, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__ or attribute.startswith("_"):
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__doc__, attribute
