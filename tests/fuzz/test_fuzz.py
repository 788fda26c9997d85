"""Handlers refuse every frame and every object that is wrong, and serve the right ones; `nox -s fuzz` tries many.

Each runs in a process of its own, because a fault may be a crash. The seed and the number in a message repeat a case.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from . import frames

COUNT = int(os.environ.get("T2J_FUZZ", "1000"))
SEED = os.environ.get("T2J_FUZZ_SEED", "0")


@pytest.mark.parametrize("module", ["frames", "outputs"])
def test_nothing_wrong_is_served_and_nothing_crashes(module):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", f"fuzz.{module}", "--seed", SEED, "--count", str(COUNT)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        text=True,
        capture_output=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    right = int(done.stdout.split()[-2])
    assert COUNT / 5 < right < COUNT * 4 / 5  # both kinds are tried


def test_every_mutation_makes_a_frame_that_does_not_fit():
    site = frames.Site(frames.SIGNATURES[0], "copy")
    for mutation in (frames.with_other_buffer, frames.with_other_count):
        changed = [mutation(random.Random(seed), site.frame) for seed in range(200)]
        assert sum(not frame.fits(site.frame) for frame in changed) > 100
    changed = [frames.with_other_attribute(random.Random(seed), site.frame) for seed in range(200)]
    assert sum(not frame.names(site.frame) for frame in changed) > 100
