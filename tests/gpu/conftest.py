"""Tests of calls on a GPU. Tests that do not depend on a GPU also run on the CPU, so that the tests are tested.

`pytest -m gpu tests/gpu` runs the tests that need a GPU, and `scripts/gpu_check.sh` does so on a machine without a
network. They need their own process, with JAX_PLATFORMS=cuda,cpu or unset.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
import torch


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add a line of JSON for each test to the file T2J_TEST_LOG. The file is complete even if the run is stopped."""
    path = os.environ.get("T2J_TEST_LOG")
    if "PYTEST_XDIST_WORKER" in os.environ:  # the controller process gets the reports of all tests
        return
    if path is None or (report.when != "call" and report.passed):
        return
    reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")
    outcome = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
    row = {"test": report.nodeid, "outcome": outcome, "seconds": round(report.duration, 2), "reason": reason[-5000:]}
    row |= report.user_properties
    with Path(path).open("a") as file:
        file.write(f"{json.dumps(row)}\n")


def gpu_of_jax() -> jax.Device | None:
    """JAX's first GPU, or None."""
    with contextlib.suppress(RuntimeError):
        return jax.devices("gpu")[0]
    return None


class Place(NamedTuple):
    """One device, as both frameworks name it."""

    jax: jax.Device
    torch: torch.device

    @property
    def is_gpu(self) -> bool:
        return self.torch.type == "cuda"

    def delay(self, cycles: int = 20_000_000) -> None:
        """Occupy torch's current stream for about 10 ms; do nothing on the CPU."""
        if self.is_gpu:
            torch.cuda._sleep(cycles)


def _place(name: str) -> Place:
    if name == "cpu":
        return Place(jax.devices("cpu")[0], torch.device("cpu"))
    device = gpu_of_jax()
    if device is None or not torch.cuda.is_available():
        pytest.skip(f"needs a GPU: JAX has {device}, torch.cuda.is_available() is {torch.cuda.is_available()}")
    return Place(device, torch.device("cuda", device.local_hardware_id))


@pytest.fixture
def on() -> Callable[[str], contextlib.AbstractContextManager[Place]]:
    """`with on("gpu") as place` sets JAX's default device and returns the place."""

    @contextlib.contextmanager
    def enter(name: str) -> Iterator[Place]:
        place = _place(name)
        with jax.default_device(place.jax):
            yield place

    return enter


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, on) -> Iterator[Place]:
    """The CPU, and a GPU if there is one."""
    with on(request.param) as found:
        yield found


@pytest.fixture
def gpu(on) -> Iterator[Place]:
    """A GPU; the test is skipped if there is none."""
    with on("gpu") as found:
        yield found
