"""Every Python block in READMEs and docs runs: blocks of executed pages when the site is built, all others here."""

from __future__ import annotations

import codeop
import contextlib
import importlib
import io
import re
import warnings
from pathlib import Path

import pytest
from _markdown import Block, all_blocks, is_executed

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
EXECUTED = [page for page in PAGES if is_executed(page)]
GALLERY, HOWTO = (sorted(DOCS.glob(f"{folder}/[!i]*.md")) for folder in ("gallery", "howto"))
READMES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]
STATIC = [
    page
    for page in (*READMES, *PAGES)
    if page not in EXECUTED and any(block.language == "python" for block in all_blocks(page))
]
MARKDOWN = [*PAGES, *ROOT.glob("*.md"), *ROOT.glob("packages/*/*.md"), *ROOT.glob("benchmarks/*.md")]

COMPILED_ONLY = "Before:"  # code for another library, followed by its replacement


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_of(page: Path, block: Block) -> object:
    return compile("\n" * block.line + block.text, str(page), "exec")  # tracebacks then name the line of the page


@pytest.mark.parametrize("page", STATIC, ids=name_of)
def test_python_blocks_run_and_print_what_the_page_says(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = None
    for block in all_blocks(page):
        if block.language == "output":
            assert not block.before.strip(), f"line {block.line}: output must be directly below its block"
            assert printed == block.text.strip()
        if block.language == "python":
            code = code_of(page, block)
            if not block.before.rstrip().endswith(COMPILED_ONLY):
                with contextlib.redirect_stdout(io.StringIO()) as stream, warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    exec(code, namespace)
                printed = stream.getvalue().strip()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_of_python_is_left_out(page):
    run = "{code-cell} python" if page in EXECUTED else "python"
    for block in all_blocks(page):
        if re.search(r"py|code-cell|code-block|doctest", block.language):
            assert block.language == run, f"line {block.line}: this page runs blocks of {run!r} only"
            code_of(page, block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_is_narrow_enough_for_the_page(page):
    """Wider lines are cut at the right edge of a page, or have to be scrolled."""
    wide = [
        f"line {number}: {len(line)} columns"
        for block in all_blocks(page)
        if re.search(r"py|code-cell", block.language)
        for number, line in enumerate(block.text.splitlines(), block.line + 1)
        if len(line) > 84
    ]
    assert not wide


@pytest.mark.parametrize("page", GALLERY, ids=name_of)
def test_a_page_of_the_gallery_is_short_and_has_a_picture(page):
    assert page in EXECUTED
    code = [line for block in all_blocks(page) if "code-cell" in block.language for line in block.text.splitlines()]
    assert len([line for line in code if line.strip()]) < 80
    assert any(re.search(r"\bplt\.|\.imshow\(|\.plot\(", line) for line in code)


@pytest.mark.parametrize("page", [*GALLERY, *HOWTO], ids=name_of)
def test_pages_of_one_kind_have_one_form(page):
    text = page.read_text()
    assert re.search(r"^    description: ", text.split("\n---\n")[0], flags=re.M)
    assert "## See also" not in text
    assert re.match(r"See also: \[", text.rstrip().rpartition("\n\n")[2])


def test_the_quickstart_can_be_typed():
    """At the prompt of Python before 3.13 an empty line ends a function, and only an empty line ends a loop."""
    for block in all_blocks(DOCS / "quickstart.md"):
        if block.language == "python":
            typed: list[str] = []
            for line in [*block.text.splitlines(), ""]:
                typed.append(line)
                if codeop.compile_command("\n".join(typed)) is not None:
                    typed.clear()
            assert not typed, f"line {block.line}: not complete"


def test_there_are_pages_of_both_kinds():
    assert len(EXECUTED) >= 30
    assert len(STATIC) >= 15
    assert set(READMES) <= set(STATIC)


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_links_to_files_are_not_broken(page):
    prose = re.sub(r"^(`{3,}).*?^\1", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", prose):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("package", ["t2j_core", "t2j_autodiff", "t2j_dist"])
def test_every_public_name_is_in_the_reference(package):
    page = (DOCS / "api" / f"{package.removeprefix('t2j_')}.md").read_text()
    module = importlib.import_module(package)
    for name, value in vars(module).items():
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(package):
            assert re.search(rf"\b{package}\.{name}\b|`{name}`", page), name
