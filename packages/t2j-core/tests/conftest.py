"""Settings of all tests: everything on the CPU unless JAX_PLATFORMS says otherwise; see `common.be_strict`."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("T2J_PROGRESS_SECONDS", "0")  # tests on a busy machine do not log what is slow

import pytest

pytest.register_assert_rewrite("common", "helpers")

import common
import jax
import jax.numpy as jnp
from common import frozen as frozen
from common import pytest_collection_modifyitems as pytest_collection_modifyitems
from helpers import check_intact
from t2j_core import Size, torch2jax
from t2j_core.testing import assert_nothing_escaped

common.be_strict()


@pytest.fixture
def intact():
    """After the test, everything works as before."""
    yield
    check_intact()


@pytest.fixture
def nothing_escaped(intact):
    """After the test, nothing holds memory that was lent to a call."""
    yield
    one = jax.block_until_ready(jnp.ones(1))  # where the inputs are there, JAX runs a call at once and raises at once
    with pytest.raises(ZeroDivisionError):  # the last error keeps the frames it went through, and what they hold
        torch2jax(lambda t: 1 / 0, output_shapes=Size(1))(one)
    assert_nothing_escaped()
