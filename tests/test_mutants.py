"""The mutants of `scripts/mutants` fit the code as it is; `nox -s mutants` tries them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts" / "mutants"))
from _mutants import Mutant, MutantError, missing_tests, read_mutants  # noqa: E402

MUTANTS = read_mutants()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code(mutant):
    text = (ROOT / mutant.file).read_text()
    assert mutant.applied_to(text) != text
    assert missing_tests(mutant) == []


def test_every_mutant_has_a_name_of_its_own():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 60


def test_the_committed_score_is_of_these_mutants():
    outcomes = json.loads((ROOT / "benchmarks" / "results" / "mutants.json").read_text())["outcomes"]
    wanted = {mutant.name: "equivalent" if mutant.equivalent else "caught" for mutant in MUTANTS}
    assert outcomes == wanted, "run `nox -s mutants`, or `nox -s mutants -- --only NAME` for new ones"


def mutant(before: str, after: str = "pass", file: str = "some.py") -> Mutant:
    return Mutant("name", "area", "why", file, before, after, ("tests/test_mutants.py",))


@pytest.mark.parametrize("before", ["absent", "twice"])
def test_a_piece_that_is_not_there_once_is_refused(before):
    with pytest.raises(MutantError, match="Expected: once"):
        mutant(before).applied_to("once\ntwice\ntwice\n")


def test_what_is_no_python_is_refused():
    with pytest.raises(MutantError, match="not valid Python"):
        mutant("once", "if").applied_to("once\n")
    assert mutant("once", "if (", "some.cc").applied_to("once\n") == "if (\n"


def test_a_test_that_is_gone_is_found():
    here = "tests/test_mutants.py"
    tests = (here, f"{here}::test_a_test_that_is_gone_is_found", f"{here}::test_gone", "tests/gone.py")
    assert missing_tests(mutant("once")._replace(tests=tests)) == [f"{here}::test_gone", "tests/gone.py"]
