"""Every name that ARCHITECTURE.md mentions exists."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
NATIVE = ROOT / "packages/t2j-core/native"
PACKAGES = ("t2j_core", "t2j_autodiff", "t2j_dist")
SPANS = sorted(set(re.findall(r"`([^`\n]+)`", re.sub(r"^ {4}.*$", "", PAGE, flags=re.M))))
NAMES = [span for span in SPANS if re.fullmatch(r"_[a-z]\w*(\.\w+)+", span)]
IN_NATIVE = [span for span in SPANS if re.fullmatch(r"\w+\.(cc|h)( \w+)?", span)]
FILES = [span for span in SPANS if re.fullmatch(r"[\w.-]+/[\w./-]+", span)]


def exists(name: str) -> bool:
    """Whether one of the packages has a module, or something in a module, of that name."""
    for package in PACKAGES:
        parts = [package, *name.split(".")]
        for count in range(len(parts), 1, -1):
            try:
                found = importlib.import_module(".".join(parts[:count]))
            except ModuleNotFoundError:
                continue
            for attribute in parts[count:]:
                found = getattr(found, attribute, None)
            if found is not None:
                return True
            break
    return False


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_python_exists(name):
    assert exists(name)


@pytest.mark.parametrize("name", IN_NATIVE)
def test_a_name_in_cpp_exists(name):
    file, _, identifier = name.partition(" ")
    assert re.search(rf"\b{identifier}\b", (NATIVE / file).read_text())


@pytest.mark.parametrize("path", FILES)
def test_a_file_exists(path):
    sources = (ROOT / "packages").glob("*/src/*")
    assert any((folder / path).exists() for folder in (ROOT, ROOT / "packages/t2j-core", *sources))


def test_there_are_names_of_all_kinds():
    assert len(NAMES) > 60
    assert len(IN_NATIVE) > 8
    assert len(FILES) > 5


def test_every_layer_is_in_a_table():
    for package in PACKAGES[:2]:
        path = importlib.import_module(package).__path__
        layers = {module.name for module in pkgutil.iter_modules(path) if module.ispkg}
        assert layers <= set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M))


def test_the_glossary_is_short_and_in_order():
    terms = re.findall(r"^- \*\*(.+?)\*\*", PAGE.partition("## Glossary")[2], re.M)
    assert 15 <= len(terms) <= 25
    assert terms == sorted(terms, key=str.lower)
