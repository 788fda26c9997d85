"""The mutants: faults as pairs of texts in the `.toml` files of this folder, and how one gets into a copy of the code.

A mutant names a file and a piece of it, `before`, that is replaced by `after`. Pairs of texts survive changes nearby,
as numbers of lines would not; a piece that is not there exactly once is an error.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class MutantError(Exception):
    """A mutant that does not fit the code, or that is not described as it must be."""


class Mutant(NamedTuple):
    """One fault. The fields from `why` on are those of its table in the `.toml` file."""

    name: str
    area: str
    """The name of the `.toml` file."""
    why: str
    """What goes wrong, in one line."""
    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    """What has to fail, as arguments of pytest."""
    equivalent: str = ""
    """Why no test can see it; empty for all others."""

    @property
    def is_native(self) -> bool:
        """Whether the extension has to be built."""
        return not self.file.endswith(".py")

    def apply(self, root: Path) -> None:
        """Plant the fault in the code below `root`."""
        path = root / self.file
        path.write_text(self.applied_to(path.read_text()))

    def applied_to(self, text: str) -> str:
        """The text of the file with the fault."""
        count = text.count(self.before)
        if count != 1:
            raise MutantError(
                f"The mutant {self.name!r} ({self.area}.toml) does not fit {self.file}: its `before` is there {count} "
                "times.\n  Expected: once\nCorrect `before`, or remove the mutant if what it breaks is gone."
            )
        mutated = text.replace(self.before, self.after)
        if not self.is_native:
            _check_python(self, mutated)
        return mutated


def _check_python(mutant: Mutant, text: str) -> None:
    """Raise for a fault that any test would see, because the module cannot be imported."""
    try:
        ast.parse(text)
    except SyntaxError as error:
        raise MutantError(f"The mutant {mutant.name!r} ({mutant.area}.toml) is not valid Python: {error}.") from None


def read_mutants() -> list[Mutant]:
    """All mutants, in the order of their files."""
    return [mutant for path in sorted(HERE.glob("*.toml")) for mutant in _read(path)]


def _read(path: Path) -> list[Mutant]:
    tables = tomllib.loads(path.read_text())
    return [_mutant(name, path.stem, table) for name, table in tables.items()]


def _mutant(name: str, area: str, table: dict[str, str | list[str]]) -> Mutant:
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    try:
        return Mutant(name, area, **fields)  # type: ignore[arg-type]
    except TypeError as error:
        raise MutantError(f"The mutant {name!r} ({area}.toml) lacks a field, or has an unknown one: {error}.") from None


def missing_tests(mutant: Mutant) -> list[str]:
    """The tests of a mutant that are not there."""
    return [test for test in mutant.tests if not _is_there(*test.partition("::")[::2])]


def _is_there(file: str, test: str) -> bool:
    path = ROOT / file
    return path.is_file() and f"def {test.partition('[')[0]}(" in (path.read_text() if test else "def (")
