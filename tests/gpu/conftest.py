"""Tests of calls on a GPU. What does not depend on one runs on the CPU too, so that the tests themselves are tested.

`pytest -m gpu tests/gpu` runs those that need a GPU, and `scripts/gpu_check.sh` does so on a machine without a network.
They need a process of their own with JAX_PLATFORMS=cuda,cpu, or unset.
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
    """Add a line of JSON for each test to the file T2J_TEST_LOG, which is whole wherever the run is stopped."""
    path = os.environ.get("T2J_TEST_LOG")
    if "PYTEST_XDIST_WORKER" in os.environ:  # the process that hands out the tests hears of all of them
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
    """JAX's first GPU, if it sees one here."""
    with contextlib.suppress(RuntimeError):
        return jax.devices("gpu")[0]
    return None


class Place(NamedTuple):
    """One device, under the names of both frameworks."""

    jax: jax.Device
    torch: torch.device

    @property
    def is_gpu(self) -> bool:
        return self.torch.type == "cuda"

    def delay(self, cycles: int = 20_000_000) -> None:
        """Occupy torch's current stream for about 10 ms; nothing on the CPU."""
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
    """`with on("gpu") as place`: JAX's and torch's default device."""

    @contextlib.contextmanager
    def enter(name: str) -> Iterator[Place]:
        place = _place(name)
        with jax.default_device(place.jax):
            yield place

    return enter


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, on) -> Iterator[Place]:
    """The CPU, and a GPU where there is one."""
    with on(request.param) as found:
        yield found


@pytest.fixture
def gpu(on) -> Iterator[Place]:
    """A GPU; the test is skipped where there is none."""
    with on("gpu") as found:
        yield found
