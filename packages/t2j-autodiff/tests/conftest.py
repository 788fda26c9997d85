"""Settings of all tests: everything on the CPU unless JAX_PLATFORMS says otherwise; see `common.be_strict`."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

pytest.register_assert_rewrite("common")

import common
from common import frozen as frozen
from common import pytest_collection_modifyitems as pytest_collection_modifyitems

common.be_strict()
