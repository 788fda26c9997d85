"""`environment_info` and `python -m t2j_core`."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
import pytest
import t2j_core.__main__
import t2j_core._base.config
import torch
from common import raises
from t2j_core import environment_info, torch2jax
from t2j_core.testing import collect


def test_the_information():
    info = environment_info()
    assert info["t2j_core"] == version("t2j-core")
    assert set(info["sisters"]) == {"t2j-autodiff", "t2j-dist"}
    assert all(found == version(name) for name, found in info["sisters"].items() if found is not None)
    assert info["jax"] == jax.__version__
    assert info["jaxlib"] == version("jaxlib")
    assert info["torch"] == torch.__version__
    assert info["python"] == sys.version.split()[0]
    assert info["jax_devices"] == [str(device) for device in jax.devices()]
    assert info["jax_x64"] is False
    assert info["torch_threads"] == torch.get_num_threads()
    assert info["exchange_api"] == hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
    assert info["cuda"]["torch"] == torch.version.cuda
    major, minor = info["xla_ffi"].split(".")
    assert (int(major), int(minor) >= 1) == (0, True)


def test_it_counts_what_lives():
    collect(passes=2)
    before = environment_info()["live_sites"]
    f = jax.jit(torch2jax(torch.sin))
    f(jnp.ones(3))
    assert environment_info()["live_sites"] == before + 1
    assert environment_info()["escaped_calls"] == 0


def test_x64_is_reported():
    with jax.enable_x64(True):
        assert environment_info()["jax_x64"] is True


def test_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "t2j_core"],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for key, value in environment_info().items():
        assert f"{key}: " in done.stdout
        if key in ("t2j_core", "python", "jax", "jaxlib", "numpy", "torch", "xla_ffi"):
            assert f"{key}: {value}\n" in done.stdout
    assert "self-test: passed" in done.stdout


def test_the_command_fails_when_a_call_does(monkeypatch, capsys):
    def fail():
        raise RuntimeError("no torch today")

    monkeypatch.setattr(t2j_core.__main__, "self_test", fail)
    assert t2j_core.__main__.main() == 1
    assert "self-test: FAILED: RuntimeError: no torch today" in capsys.readouterr().out


def test_the_command_prints_json(capsys):
    assert t2j_core.__main__.main(["--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    test = printed.pop("self_test")
    assert test == {"passed": True, "text": test["text"]}
    assert "torch ran inside XLA" in test["text"]
    found = environment_info()
    assert printed.keys() == found.keys()
    for key in ("t2j_core", "jax", "torch", "jax_devices", "jax_x64", "cuda", "gpus", "gpu_wheels", "clashes"):
        assert printed[key] == found[key]


def test_a_failure_is_in_the_json_and_in_the_exit_status(monkeypatch, capsys):
    def fail():
        raise RuntimeError("no torch today")

    monkeypatch.setattr(t2j_core.__main__, "self_test", fail)
    assert t2j_core.__main__.main(["--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["self_test"] == {"passed": False, "text": "RuntimeError: no torch today"}


def test_the_command_has_help_and_refuses_what_it_does_not_know(capsys):
    with pytest.raises(SystemExit, match="0"):
        t2j_core.__main__.main(["--help"])
    assert "python -m t2j_core [-h] [--json]" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        t2j_core.__main__.main(["--jason"])


def config():
    """What a new process would read."""
    return runpy.run_path(t2j_core._base.config.__file__)["config"]


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "1e6"])
@pytest.mark.parametrize("name", ["T2J_AUTO_OUTPUT_BYTES", "T2J_KEPT_ERRORS"])
def test_a_wrong_environment_switch_is_named(monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    with raises(ValueError, what=(name, "non-negative integer"), got=f"'{text}'"):
        config()


def test_environment_switches_are_read(monkeypatch):
    monkeypatch.delenv("T2J_KEPT_ERRORS", raising=False)
    default = config().kept_errors
    assert default > 0
    monkeypatch.setenv("T2J_AUTO_OUTPUT_BYTES", "12")
    monkeypatch.setenv("T2J_KEPT_ERRORS", "")
    assert (config().auto_output_bytes, config().kept_errors) == (12, default)
    monkeypatch.setenv("T2J_KEPT_ERRORS", "7")
    assert config().kept_errors == 7
