"""Settings of all tests: 8 virtual devices; see `common.be_strict`."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("T2J_PROGRESS_SECONDS", "0")  # tests on a busy machine do not log what is slow
os.environ.setdefault("NPROC", "64")  # XLA's threads: a collective needs one for each device of each step in flight
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import pytest

pytest.register_assert_rewrite("common", "helpers")

import common
from common import frozen as frozen
from common import pytest_collection_modifyitems as pytest_collection_modifyitems

common.be_strict()
