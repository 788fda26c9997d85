"""The file of helpers that every package has, because the tests of each run without the others, is the same."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

PACKAGES = Path(__file__).parents[1] / "packages"
FILES = sorted(PACKAGES.glob("*/tests/common.py"))


def test_the_common_helpers_are_the_same_in_every_package() -> None:
    assert len(FILES) == len(list(PACKAGES.iterdir()))
    assert len({file.read_text() for file in FILES}) == 1, f"copy the newest of {list(map(str, FILES))} over the others"


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("common_helpers", FILES[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def case(test: str, number: int, step: int | None) -> Any:
    mark = None if step is None else SimpleNamespace(args=(step,))
    return SimpleNamespace(nodeid=f"{test}[{number}]", get_closest_marker=lambda name: {"thinned": mark}[name])


@pytest.mark.parametrize("runs_all", [False, True])
def test_of_a_thinned_test_some_cases_run(common: ModuleType, monkeypatch: pytest.MonkeyPatch, runs_all: bool) -> None:
    monkeypatch.setattr(common, "ALL", runs_all)
    left_out: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    items = [case("slow", k, 3) for k in range(7)] + [case("quick", k, None) for k in range(2)] + [case("one", 0, 5)]
    every = [item.nodeid for item in items]
    common.pytest_collection_modifyitems(SimpleNamespace(hook=hook), items)
    kept = [item.nodeid for item in items]
    thinned = ["slow[0]", "slow[4]", "quick[0]", "quick[1]", "one[0]"]
    assert kept == (every if runs_all else thinned)
    assert sorted(kept + [item.nodeid for item in left_out]) == sorted(every)
