"""Tests of facts about other libraries: each test holds one cell of the README's table of alternatives.

A file is a column, a test is a row, and the docstring of a test is its cell. When a library changes, its test fails;
then change the test, its docstring and the table.

Tests of libraries that are not installed are skipped; `nox -s alternatives` installs them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

# Some tests split arrays over devices. JAX reads these variables when it first looks for devices.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("NPROC", "64")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

LIBRARIES = {
    "test_wrap_torch2jax": "wrap_torch2jax",
    "test_jax_tvm_ffi": "jax_tvm_ffi",
    "test_torchax": "torchax",
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests of a library that is not installed."""
    library = LIBRARIES.get(item.path.stem)
    if library and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed; `nox -s alternatives` installs it")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be compiled: no program can be started."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError(f"a program was started: {args}")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program in a process of its own, with these environment variables."""

    def run_program(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
        options: dict[str, Any] = {"text": True, "capture_output": True, "check": False, "timeout": 300}
        return subprocess.run([sys.executable, "-c", program], env=os.environ | environment, **options)

    return run_program
