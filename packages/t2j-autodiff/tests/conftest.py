"""Settings of all tests: everything on the CPU unless JAX_PLATFORMS says otherwise; see `common.be_strict`."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("T2J_PROGRESS_SECONDS", "0")  # tests on a busy machine do not log what is slow

import pytest

pytest.register_assert_rewrite("common")

import common
from common import frozen as frozen
from common import pytest_collection_modifyitems as pytest_collection_modifyitems

common.be_strict()
