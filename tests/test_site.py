"""The site: its own parts of Sphinx, the addresses that it links to, and, where it is built, its pages.

`nox -s docs` runs these tests on the site that it has built, whose folder T2J_SITE names. Elsewhere those that need
Sphinx or the built site are skipped.
"""

from __future__ import annotations

import dataclasses
import doctest
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from _markdown import all_blocks, is_executed

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = Path(os.environ.get("T2J_SITE", "/nonexistent"))
EXECUTED = [page for page in sorted(DOCS.rglob("*.md")) if is_executed(page)]

sys.path.insert(0, str(DOCS / "_extensions"))
import addresses  # noqa: E402

WORKFLOW = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "owner/t2j"}


@pytest.mark.parametrize(
    ("environ", "remote", "expected"),
    [
        (WORKFLOW, "", "https://github.com/owner/t2j"),
        (WORKFLOW, "https://gitlab.com/else/where.git", "https://github.com/owner/t2j"),
        ({}, "https://github.com/owner/t2j.git", "https://github.com/owner/t2j"),
        ({}, "https://name:token@github.com/owner/t2j", "https://github.com/owner/t2j"),
        ({}, "git@gitlab.com:group/sub/t2j.git", "https://gitlab.com/group/sub/t2j"),
        ({}, "ssh://git@github.com:22/owner/t2j.git/", "https://github.com/owner/t2j"),
        ({}, "http://git.example.org/owner/t2j", "https://git.example.org/owner/t2j"),
        ({"GITHUB_REPOSITORY": "owner/t2j"}, "", None),
        ({}, "", None),
        ({}, "/srv/git/t2j.git", None),
        ({}, "../t2j", None),
        ({}, "C:\\git\\t2j", None),
        ({}, "file:///srv/git/t2j.git", None),
        ({}, "http://127.0.0.1:8080/owner/t2j", None),
        ({}, "http://localhost/owner/t2j", None),
    ],
)
def test_the_repository_is_that_of_the_workflow_or_of_the_remote(environ, remote, expected):
    assert addresses.repository_url(environ, remote) == expected


def test_the_remote_is_read_from_git(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert addresses.origin(tmp_path) == ""
    subprocess.run(["git", "-C", str(tmp_path), "remote", "add", "origin", "git@github.com:owner/t2j.git"], check=True)
    assert addresses.origin(tmp_path) == "git@github.com:owner/t2j.git"


def test_pages_can_be_edited_where_the_theme_knows_the_host():
    assert addresses.theme_options("https://github.com/owner/t2j")["source_repository"].endswith("/owner/t2j/")
    assert addresses.theme_options("https://git.example.org/owner/t2j") == {}
    assert addresses.theme_options(None) == {}


def test_the_examples_of_addresses():
    assert doctest.testmod(addresses) == (0, 4)


def option_rows() -> dict[str, str]:
    """Option -> default, as the tables of the reference say."""
    tables = re.findall(r"^\| (`\w+`) \| (.*?) \|", (DOCS / "api/index.md").read_text(), flags=re.M)
    return {name.strip("`"): default for name, default in tables}


def test_the_tables_have_every_option_with_its_default():
    autodiff = pytest.importorskip("t2j_autodiff.extend")
    from t2j_core.extend import Options

    told = option_rows()
    no_words = {"use_zeros", "use_torch_vjp"}  # accepted for wrap_torch2jax, without effect
    for group in (Options, autodiff.DiffOptions):
        for option in dataclasses.fields(group):
            if option.name not in no_words:
                assert option.name in told, option.name
                written = re.fullmatch(r"`(.*)`", told[option.name])
                if written is None:  # words
                    assert option.default is None, option.name
                else:
                    expected = str(option.default) if not isinstance(option.default, str) else f'"{option.default}"'
                    assert written[1] == expected, option.name


@pytest.mark.parametrize("name", ["core", "autodiff", "dist"])
def test_each_entry_of_the_reference_opens_with_an_example(name):
    page = DOCS / f"api/{name}.md"
    assert all_blocks(page)[0].language == "python"
    for section in re.split(r"^## ", page.read_text(), flags=re.M)[1:]:
        title = section.splitlines()[0]
        example, signature = section.find("```python"), section.find("```{eval-rst}")
        assert 0 <= example < signature, title
        lines = [line for line in section[example:].split("```")[1].splitlines()[1:] if line.strip()]
        assert 1 <= len(lines) <= 8, title


# The directive, the notebooks and the tags, on a site of three pages.

CONF = """
import sys
sys.path.insert(0, {extensions!r})
extensions = ["myst_nb", "page_lists", "notebooks", "meta_tags"]
project = "small"
html_baseurl = "https://example.org/small/"
nb_execution_mode = "force"
nb_execution_raise_on_error = True
myst_heading_anchors = 1
"""
HEAD = """---
file_format: mystnb
kernelspec:
  name: python3
  display_name: Python 3
{more}---

"""
INDEX = """# Small

Everything is here. And more.

```{pages}
:glob:
:pictures:

shown/*
```
"""
PICTURE = """
```{code-cell} python
import base64
from IPython.display import Image, display

display(Image(base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)))
```
"""


def build(folder: Path, **pages: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("myst_nb")
    (folder / "docs/shown").mkdir(parents=True)
    (folder / "docs/conf.py").write_text(CONF.format(extensions=str(DOCS / "_extensions")))
    (folder / "docs/index.md").write_text(INDEX)
    for name, text in pages.items():
        (folder / f"docs/shown/{name}.md").write_text(text)
    command = (sys.executable, "-m", "sphinx", "-W", "--keep-going", "-b", "html", "docs", "site")
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def test_a_list_shows_what_its_pages_say(tmp_path):
    plain = HEAD.format(more="") + "# Plain\n\nIt uses `jnp` 0.6 and [more](described.md). Not this.\n\n"
    plain += "```bash\npip install 'numpyro>=0.15' -q flax  # and a compiler\n```\n" + PICTURE
    more = "myst:\n  html_meta:\n    description: In its own words.\n"
    described = HEAD.format(more=more) + "# Described\n\nNot this. See [Plain](plain.md#plain).\n" + PICTURE
    result = build(tmp_path, plain=plain, described=described)
    assert result.returncode == 0, result.stderr
    index = (tmp_path / "site/index.html").read_text()
    cards = re.findall(r'<div class="t2j-card .*?(?=<div class="t2j-card |</section>)', index, flags=re.S)
    assert ["shown/described.html" in card for card in cards] == [True, False]
    words = [html.unescape(re.sub(r"<[^>]+>", " ", card)).split() for card in cards]
    assert words[0] == "Described In its own words.".split()
    assert words[1] == "Plain It uses jnp 0.6 and more. numpyro flax".split()
    for card in cards:
        (picture,) = re.findall(r'<img alt="" [^>]*src="([^"]+)"', card)
        assert (tmp_path / "site" / picture).stat().st_size > 0
        assert len(re.findall("<a ", card)) == 1  # links in links are no HTML

    page = (tmp_path / "site/shown/described.html").read_text()
    assert '<meta property="og:description" content="In its own words.">' in page
    assert '<meta property="og:url" content="https://example.org/small/shown/described.html">' in page
    assert re.search(r'<meta property="og:image" content="https://example.org/small/_images/\w+\.png">', page)
    assert len(re.findall(r'<meta [^>]*name="description"', page)) == 1
    page = (tmp_path / "site/shown/plain.html").read_text()
    assert '<meta name="description" content="It uses jnp 0.6 and more. Not this.">' in page

    assert 'href="../_notebooks/shown/plain.ipynb"' in page
    notebook = json.loads((tmp_path / "site/_notebooks/shown/described.ipynb").read_text())
    prose = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    assert "[Plain](https://example.org/small/shown/plain.html#plain)" in prose
    assert [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"][0]


def test_a_page_of_the_gallery_needs_a_picture(tmp_path):
    result = build(tmp_path, bare=HEAD.format(more="") + "# Bare\n\nWords.\n\n```{code-cell} python\nprint(1)\n```\n")
    assert result.returncode != 0
    assert re.search(r"shown/bare\.md: the gallery needs a picture", result.stderr)


# The built site.

built = pytest.mark.skipif(not SITE.exists(), reason="T2J_SITE names no built site")


def built_page(source: Path) -> str:
    return (SITE / source.relative_to(DOCS).with_suffix(".html")).read_text()


@built
@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: str(page.relative_to(DOCS)))
def test_an_executed_page_shows_no_warnings_and_has_its_notebook(page):
    text = built_page(page)
    assert 'class="output stderr' not in text
    assert not re.search("IProgress|Could not load", text)
    notebook = json.loads((SITE / "_notebooks" / page.relative_to(DOCS).with_suffix(".ipynb")).read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert f'{page.stem}.ipynb">Download' in text


@built
def test_every_page_has_a_description_and_an_icon():
    for page in DOCS.rglob("*.md"):
        text = built_page(page)
        (description,) = re.findall(r'<meta property="og:description" content="([^"]+)"', text)
        assert len(description) > 20, page
        assert "_static/mark.svg" in text, page


@built
def test_links_inside_the_site_lead_somewhere():
    ids: dict[Path, set[str]] = {}
    for page in SITE.rglob("*.html"):
        ids[page.resolve()] = set(re.findall(r'\bid="([^"]+)"', page.read_text()))
    for page in ids:
        for target in re.findall(r'(?:href|src)="([^"]+)"', page.read_text()):
            path, _, anchor = html.unescape(target).partition("#")
            if re.match(r"[a-z]+:|//", path):
                continue
            file = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
            assert file.exists(), f"{page.relative_to(SITE.resolve())}: {target}"
            if anchor and file in ids and not anchor.startswith("svg-"):
                assert unquote(anchor) in ids[file], f"{page.relative_to(SITE.resolve())}: {target}"
