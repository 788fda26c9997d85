"""What is installed from the root, what the release adds to metadata, and what the forms for issues ask for."""

from __future__ import annotations

import contextlib
import email
import importlib.util
import io
import re
import shutil
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest
from _markdown import all_blocks

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
ADDRESS = "https://example.org/owner/name"

every_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)


def read(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def prose_of(page: Path) -> str:
    return re.sub(r"^(`{3,}).*?^\1", "", page.read_text(), flags=re.M | re.S)


# --- the root ------------------------------------------------------------------------------------------------------


def test_the_root_depends_on_every_package():
    names = [folder.name for folder in PACKAGES]
    assert names == ["t2j-autodiff", "t2j-core", "t2j-dist"]
    expected = {f"{name} @ {{root:uri}}/packages/{name}" for name in names}
    assert set(read(ROOT)["project"]["dependencies"]) == expected
    assert [read(folder)["project"]["name"] for folder in PACKAGES] == names


def test_the_wheel_of_the_root_has_only_metadata(tmp_path, monkeypatch):
    """The dependencies are the folders of this checkout, also if its path has a space. PyPI refuses the wheel."""
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="builds the metadata")
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    shutil.copy(ROOT / "pyproject.toml", checkout)
    monkeypatch.chdir(checkout)
    (built,) = wheel.WheelBuilder(str(checkout)).build(directory=str(tmp_path / "dist"))
    with zipfile.ZipFile(built) as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"t2j_all-0.dist-info"}
        metadata = email.message_from_bytes(archive.read("t2j_all-0.dist-info/METADATA"))
    assert "Private :: Do Not Upload" in metadata.get_all("Classifier")
    folders = {line.partition(" @ ")[2] for line in metadata.get_all("Requires-Dist")}
    assert folders == {(checkout / "packages" / folder.name).as_uri() for folder in PACKAGES}
    assert all("a%20checkout" in folder for folder in folders)


@every_package
def test_uv_builds_again_when_a_source_changes(package):
    """By default it compares only `pyproject.toml`, so `uv pip install .` would keep the packages after `git pull`."""
    keys = [key["file"] for key in read(package)["tool"]["uv"]["cache-keys"]]
    looked_at = {path for key in keys for path in package.glob(key)}
    built_from = {package / "pyproject.toml", *package.glob("hatch_build.py"), *package.glob("native/*")}
    built_from.update((package / "src").rglob("*.py"))
    assert len(built_from) > 10
    assert built_from <= looked_at


def test_the_commands_for_an_installation_name_every_package():
    page = ROOT / "docs" / "installation.md"
    from_git = [block.text for block in all_blocks(page) if "git+$URL" in block.text]
    named = [re.findall(r'"(\S+) @ git\+\$URL#subdirectory=packages/(\S+)"', text) for text in from_git]
    assert [sorted(pairs) for pairs in named] == [[(folder.name, folder.name) for folder in PACKAGES]]
    first = next(block for block in all_blocks(page) if block.language == "bash")
    assert "--index-url" in first.text.splitlines()[1], "the CPU build of torch comes before everything else"
    assert "pip install . " in first.text


# --- the release ---------------------------------------------------------------------------------------------------


@pytest.fixture
def write_addresses():
    spec = importlib.util.spec_from_file_location("project_urls", ROOT / "scripts" / "project_urls.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_addresses


def copied(package: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "packages" / package.name
    copy.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(package / name, copy)
    return copy


@every_package
def test_the_release_writes_addresses_into_metadata(package, tmp_path, write_addresses):
    core = pytest.importorskip("hatchling.metadata.core", reason="reads the metadata")
    manager = pytest.importorskip("hatchling.plugin.manager", reason="reads the metadata")
    assert "urls" not in read(package)["project"]
    copy = copied(package, tmp_path)
    write_addresses(copy, ADDRESS, f"{package.name}-v1.2.3")
    metadata = core.ProjectMetadata(str(copy), manager.PluginManager()).core
    assert metadata.name == package.name
    assert metadata.urls == {
        "Repository": ADDRESS,
        "Documentation": f"{ADDRESS}/tree/{package.name}-v1.2.3/docs",
        "Issues": f"{ADDRESS}/issues",
        "Changelog": f"{ADDRESS}/blob/{package.name}-v1.2.3/packages/{package.name}/CHANGELOG.md",
    }
    assert metadata.readme == (copy / "README.md").read_text()


@every_package
def test_links_of_a_released_readme_lead_to_the_files_of_its_tag(package, tmp_path, write_addresses):
    copy = copied(package, tmp_path)
    before = re.findall(r"\]\(([^)#\s]+)", prose_of(package / "README.md"))
    write_addresses(copy, ADDRESS, "tag")
    after = re.findall(r"\]\(([^)#\s]+)", prose_of(copy / "README.md"))
    assert len(after) == len(before) > 0
    for old, new in zip(before, after, strict=True):
        if "://" in old:
            assert new == old
        else:
            start, _, path = new.partition("/blob/tag/")
            assert start == ADDRESS
            assert (ROOT / path).resolve() == (package / old).resolve()
            assert (ROOT / path).exists()
    assert all_blocks(copy / "README.md") and len(re.findall("```", (copy / "README.md").read_text())) % 2 == 0
    code = [(block.language, block.text) for block in all_blocks(package / "README.md")]
    assert [(block.language, block.text) for block in all_blocks(copy / "README.md")] == code


def test_each_job_writes_addresses_before_it_builds():
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    jobs = re.split(r"^  (?=\w+:$)", workflow[workflow.index("\njobs:") :], flags=re.M)
    building = [job for job in jobs if re.search(r"-m build|cibuildwheel@", job)]
    assert len(building) == 2
    for job in building:
        built = re.search(r"-m build|cibuildwheel@", job)
        assert "scripts/project_urls.py" in job[: built.start()]
        assert "SETUPTOOLS_SCM_PRETEND_VERSION:" in job, "the changed files would count as an unreleased version"


# --- the forms for issues ------------------------------------------------------------------------------------------


def test_there_are_forms():
    assert [form.stem for form in FORMS] == ["bug", "feature", "gradient"]


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_the_programs_of_the_forms_run(form):
    placeholders = re.findall(r"placeholder: \|\n((?: {8}.*\n|\n)+)", form.read_text())
    assert len(placeholders) == (form.stem != "feature")
    for program in placeholders:
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(compile(textwrap.dedent(program), str(form), "exec"), {})
        assert stream.getvalue()


def test_reports_of_faults_ask_for_the_environment():
    for form in FORMS:
        assert ("python -m t2j_core --json" in form.read_text()) == (form.stem != "feature")
