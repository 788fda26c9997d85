"""A plugin of pytest for test modules of JAX: replaces functions in them, and writes down how each test ends.

A module is read from its folder and rewritten before it is run: `jnp.sin` becomes `in_place_of(jnp.sin)`, and `a @ b`
becomes `matmul(a, b)`. So only what the module itself says is replaced; JAX's own code keeps the real functions. A test
is not run if neither its source nor what this names in its module has something that is replaced.
"""

from __future__ import annotations

import ast
import collections
import faulthandler
import importlib.abc
import importlib.machinery
import importlib.util
import json
import re
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch_functions

PREFIX = "_t2j_"
OUTCOMES = ("passed", "skipped", "failed")  # the worst of several reports counts


class Rewriter(ast.NodeTransformer):
    """Replaces the names of functions, and the operator, in the source of a module."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        return self._call("in_place_of", node, node) if is_replaced(node) else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return self._call("matmul", node, node.left, node.right) if is_replaced(node) else node

    def _call(self, name: str, at: ast.expr, *args: ast.expr) -> ast.AST:
        function = ast.copy_location(ast.Name(PREFIX + name, ast.Load()), at)
        return ast.copy_location(ast.Call(function, list(args), []), at)


def is_replaced(node: ast.AST) -> bool:
    """Whether a node is what `Rewriter` replaces."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.MatMult)
    return isinstance(node, ast.Attribute) and node.attr in torch_functions.NAMES and isinstance(node.ctx, ast.Load)


def names_that_reach(tree: ast.Module) -> set[str]:
    """The definitions of a module that have something that is replaced, or name a definition that has.

    Names that are equal count as the same, so that there may be too many.
    """
    said: dict[str, set[str]] = collections.defaultdict(set)
    found = set()
    for name, node in definitions(tree):
        for part in ast.walk(node):
            said[name].add(getattr(part, "id", "") or getattr(part, "attr", ""))
            if is_replaced(part):
                found.add(name)
    while more := {name for name in said if name not in found and said[name] & found}:
        found |= more
    return found


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """What a module and its classes define."""
    for outer in tree.body:
        for node in (outer, *(outer.body if isinstance(outer, ast.ClassDef) else ())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name, node
            else:
                stored = (n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
                yield from ((name.id, node) for name in stored)


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a rewritten module, without reading or writing bytecode."""

    def get_code(self, fullname: str) -> types.CodeType:
        tree = Rewriter().visit(ast.parse(self.get_data(self.path)))
        return compile(tree, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: types.ModuleType) -> None:
        for function in (torch_functions.in_place_of, torch_functions.matmul):
            setattr(module, PREFIX + function.__name__, function)
        super().exec_module(module)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the module that is rewritten."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> Any:
        if name != self.file.stem:
            return None
        return importlib.util.spec_from_file_location(name, self.file, loader=Loader(name, str(self.file)))


class Log:
    """Writes a line before each test and one after it, so that the test that ends the process is known."""

    def __init__(self, file: Path, seconds: float, source: Path | None) -> None:
        self.file, self.seconds = file, seconds
        self.reach = None if source is None else names_that_reach(ast.parse(source.read_text()))
        self.seen = {line["test"] for line in lines_of(file) if "outcome" in line}
        self.outcome, self.reason = "passed", ""

    def write(self, **line: Any) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Go on where an earlier process ended, and leave out what calls no function that is replaced."""
        items[:] = [item for item in items if name_of(item) not in self.seen]
        if self.reach is None:
            return
        left_out = [item for item in items if not any(item.name.startswith(name) for name in self.reach)]
        for item in left_out:
            self.write(test=name_of(item), outcome="not run", reason="", calls={})
        items[:] = [item for item in items if item not in left_out]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.outcome, self.reason = "passed", ""
        torch_functions.COUNTS.clear()
        self.write(test=name_of(item))
        faulthandler.dump_traceback_later(self.seconds, exit=True)
        result = yield
        faulthandler.cancel_dump_traceback_later()
        calls = dict(torch_functions.COUNTS)
        self.write(test=name_of(item), outcome=self.outcome, reason=self.reason, calls=calls)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        report: Any = yield
        if OUTCOMES.index(report.outcome) > OUTCOMES.index(self.outcome):
            self.outcome, self.reason = report.outcome, brief(call.excinfo)
        return report


def name_of(item: pytest.Item) -> str:
    """`Class::test`, without the file."""
    return item.nodeid.partition("::")[2]


def brief(info: pytest.ExceptionInfo[BaseException] | None) -> str:
    """An exception in one line, without what differs from run to run."""
    if info is None:
        return ""
    text = " ".join(f"{info.type.__name__}: {info.value}".split())
    return re.sub(r"0x[0-9a-f]+|\bid=\d+", "...", re.sub(r"(/[\w.+-]+)+/", "", text))[:300]


def lines_of(file: Path) -> list[dict[str, Any]]:
    """What a log has so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("jax_suite")
    group.addoption("--log", type=Path, help="where the outcomes go")
    group.addoption("--replace", action="store_true", help="replace functions of JAX by torch functions")
    group.addoption("--seconds", type=float, help="the time for one test")


def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    source = Path(config.args[0].partition("::")[0]) if option.replace else None
    if source is not None:
        finder = Finder(source)
        sys.meta_path.insert(0, finder)
        config.add_cleanup(lambda: sys.meta_path.remove(finder))
    config.pluginmanager.register(Log(option.log, option.seconds, source))
