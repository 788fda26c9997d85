"""Settings of random programs: everything on the CPU unless JAX_PLATFORMS says otherwise."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

pytest.register_assert_rewrite("judged_programs")
