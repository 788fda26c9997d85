"""Copies of the packages and their tests, one for each mutant, and the extension built in them.

The first copy has no fault. What it has built, object files and bytecode, is copied too, so that a mutant compiles
only what it has changed.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import Executor
from pathlib import Path

from _mutants import ROOT, Mutant, MutantError

_PARTS = ("packages", "tests", "pyproject.toml")
_LEFT_BEHIND = shutil.ignore_patterns("*.so", "*.o", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
_CORE = Path("packages", "t2j-core")
# Quick to build: the fault matters, not the speed of the calls.
_FLAGS = ("-std=c++17", "-O0", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wno-invalid-offsetof")


def make_first_copy(folder: Path, workers: Executor) -> None:
    """Copy the code without a fault to a new folder, and build the extension there."""
    for part in _PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=_LEFT_BEHIND)
        else:
            shutil.copy2(source, folder / part)
    _build(folder / _CORE, workers)


def make_copy(first: Path, folder: Path, mutant: Mutant, workers: Executor) -> None:
    """Copy the first copy to a new folder, plant a fault there and build what it changes."""
    shutil.copytree(first, folder)  # with the times of files, by which Python knows its bytecode
    mutant.apply(folder)
    if mutant.is_native:
        native = folder / _CORE / "native"
        for source in _readers_of(Path(mutant.file).name, native):
            source.with_suffix(".o").unlink()
        _build(folder / _CORE, workers, mutant)


def _readers_of(name: str, native: Path) -> list[Path]:
    """The sources that are, or include, a file of the native part."""
    files = [path for path in native.iterdir() if path.suffix in (".cc", ".h")]
    names = {name}
    while more := {path.name for path in files if path.name not in names and _includes(path, names)}:
        names |= more
    return [path for path in files if path.suffix == ".cc" and path.name in names]


def _includes(path: Path, names: set[str]) -> bool:
    included = re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE)
    return not names.isdisjoint(included)


def _build(package: Path, workers: Executor, mutant: Mutant | None = None) -> None:
    """Compile the sources that have no object file, and link all of them."""
    import pybind11

    sources = sorted((package / "native").glob("*.cc"))
    include = [f"-I{path}" for path in (sysconfig.get_path("include"), pybind11.get_include())]
    compiler = shlex.split(sysconfig.get_config_var("CXX") or "c++")[0]
    missing = [source for source in sources if not source.with_suffix(".o").exists()]
    commands = [
        [compiler, *_FLAGS, *include, "-c", str(source), "-o", str(source.with_suffix(".o"))] for source in missing
    ]
    output = package / "src" / "t2j_core" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    link = [compiler, "-shared", *(str(source.with_suffix(".o")) for source in sources), "-o", str(output)]
    for done in (*workers.map(_run, commands), _run(link)):
        if done.returncode:
            what = "The extension" if mutant is None else f"The mutant {mutant.name!r} ({mutant.area}.toml)"
            raise MutantError(f"{what} cannot be built:\n{done.stderr[-2000:]}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)
