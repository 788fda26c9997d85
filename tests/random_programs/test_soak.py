"""Two minutes of the soak, always with the same seed; `nox -s soak` runs it for 20 minutes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import resources

SOAK = Path(__file__).with_name("soak.py")


def test_a_short_soak():
    """In a process of its own, which has 8 devices and in which nothing else grows."""
    done = subprocess.run(
        [sys.executable, str(SOAK), "--seed", "0", "--minutes", "2"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "64"},
        text=True,
        capture_output=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("late", "is_too_much"), [(1, False), (2, True)])
def test_growth_is_from_the_second_quarter_to_the_last(late, is_too_much):
    samples = [{"live sites": n} for n in (9, 0, 1, 1, 1, 5, late, late)]
    assert bool(resources.grown_too_much(samples)) == is_too_much
