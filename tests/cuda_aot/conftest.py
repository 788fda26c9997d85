"""Tests of programs for a GPU that need no GPU: JAX's CUDA plugin compiles them for one that is described in a file.

`nox -s cuda_aot` runs them. They are not collected without the plugin, or where JAX would look for a real GPU.
"""

from __future__ import annotations

import importlib.util
import os

import pytest

_NEEDED = {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
_MISSING = [f"{name}={value}" for name, value in _NEEDED.items() if os.environ.get(name) != value]
if importlib.util.find_spec("jax_cuda13_plugin") is None:
    _MISSING.append("jax-cuda13-plugin")

collect_ignore_glob = ["test_*.py"] if _MISSING else []


def pytest_report_header() -> list[str]:
    """Says why nothing is collected, where this folder alone is asked for."""
    return [f"tests/cuda_aot is not collected without {', '.join(_MISSING)}: run `nox -s cuda_aot`"] if _MISSING else []


@pytest.fixture
def sites(monkeypatch) -> list[tuple[str, int]]:
    """For each call site that XLA builds: the name of its function, and how many other sites exist at that moment."""
    from t2j_core._run.torch_fn import TorchFn
    from t2j_core.testing import counters

    built: list[tuple[str, int]] = []
    call_site = TorchFn.call_site

    def noted(self, **how):
        built.append((self.signature.name, counters()["live_sites"]))
        return call_site(self, **how)

    monkeypatch.setattr(TorchFn, "call_site", noted)
    return built
