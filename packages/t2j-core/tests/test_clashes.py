"""Which versions of PyTorch, JAX and the GPU libraries go together, decided on made-up installations."""

from __future__ import annotations

import re
from importlib.metadata import distributions

import pytest
import t2j_core.__main__
import torch
from t2j_core import environment_info
from t2j_core._diagnose import info
from t2j_core._diagnose.clashes import clashes, installed
from t2j_core._diagnose.gpus import gpus

CPU = {"torch": "2.13.0+cpu", "cuda of torch": None, "rocm of torch": None, "jaxlib": "0.10.2"}
CUDA13 = {**CPU, "torch": "2.13.0+cu130", "cuda of torch": "13.0", "nvidia-cudnn-cu13": "9.13.0.50"}
PLUGIN13 = {"jax-cuda13-plugin": "0.10.2", "jax-cuda13-pjrt": "0.10.2"}
PLUGIN12 = {"jax-cuda12-plugin": "0.10.2", "jax-cuda12-pjrt": "0.10.2"}
NEEDS13 = {
    "torch": ['nvidia-cudnn-cu13==9.13.0.50; platform_system == "Linux"', "sympy>=1.13.3", "nvidia-nccl-cu13==2.27.7"],
    "jax-cuda13-plugin": ['nvidia-cudnn-cu13<10.0,>=9.12.0.46; sys_platform == "linux" and extra == "with-cuda"'],
}


@pytest.mark.parametrize(
    "versions",
    [
        CPU,
        {**CUDA13, **PLUGIN13},
        {**CUDA13, "cuda of torch": "12.4", **PLUGIN12},
        {**CPU, "rocm of torch": "6.2.41133-dd7f95766", "jax-rocm60-plugin": "0.10.2"},
        {**CUDA13, **PLUGIN13, "jaxlib": "0.10.2.dev1", "nvidia-cudnn-cu13": "9.14"},  # newer than torch's pin
    ],
    ids=["cpu", "cuda 13", "cuda 12", "rocm", "newer"],
)
def test_what_goes_together(versions):
    assert clashes(versions, NEEDS13) == []


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ({**CUDA13, **PLUGIN12}, "torch is built for CUDA 13, JAX for CUDA 12.*Install both for CUDA 12"),
        (
            {**CPU, **PLUGIN13},
            r"torch 2.13.0\+cpu runs on the CPU only.*Install torch for CUDA 13, or set JAX_PLATFORMS",
        ),
        (CUDA13, r"torch has CUDA 13, but JAX has no plugin.*`jax\[cuda13\]`"),
        ({**CPU, "rocm of torch": "6.2"}, "torch has ROCm 6, but JAX has no plugin.*Install JAX for ROCm"),
        ({**CPU, "rocm of torch": "6.2", **PLUGIN13}, "JAX is for CUDA, torch for another kind"),
        ({**CUDA13, **PLUGIN13, "jaxlib": "0.10.3"}, "jax-cuda13-pjrt 0.10.2 is not for jaxlib 0.10.3"),
        (
            {**CUDA13, **PLUGIN13, "nvidia-cudnn-cu13": "9.9.1"},
            r"jax-cuda13-plugin needs nvidia-cudnn-cu13 <10.0,>=9.12",
        ),
        ({**CUDA13, **PLUGIN13, "nvidia-cudnn-cu13": "10.0"}, "torch needs nvidia-cudnn-cu13 ==9.13.0.50, but 10.0 is"),
        (
            {**CUDA13, **PLUGIN13, "nvidia-nccl-cu13": "1.9"},
            "torch needs nvidia-nccl-cu13 ==2.27.7, but 1.9 is installed",
        ),
    ],
)
def test_what_clashes(versions, found):
    assert re.search(found, "\n".join(clashes(versions, NEEDS13)))


def test_plugins_for_two_majors():
    (found,) = [text for text in clashes({**CUDA13, **PLUGIN12, **PLUGIN13}) if "several" in text]
    assert "jax-cuda12-plugin" in found
    assert "jax-cuda13-plugin" in found


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ("==9.8.0", True),
        ("==9.8", True),
        ("==9.*", True),
        ("==9.9", False),
        ("==8.9", False),
        (">=9.8,<10", True),
        ("(>=9.8.1)", False),
        (">9.8", False),
        (">9.7", True),
        ("<=9.8", True),
        ("<=9.7", False),
        ("<9.8", False),
        ("~=9.1", True),
        ("~=10.1", False),
        ("", True),
    ],
)
def test_requirements(wanted, fits):
    found = clashes({**CPU, "nvidia-x": "9.8.0"}, {"torch": [f"nvidia_X {wanted}; python_version > '3'"]})
    assert (found == []) == fits


def test_what_is_installed_here():
    versions, needs = installed()
    names = {re.sub(r"[-_.]+", "-", wheel.metadata["Name"] or "").lower() for wheel in distributions()}
    assert {name for name in versions if " " not in name and name not in ("torch", "jaxlib")} <= names
    assert versions["jaxlib"] == environment_info()["jaxlib"]
    found = environment_info()
    assert found["clashes"] == (clashes(versions, needs) if found["gpus"] else [])


@pytest.mark.parametrize(("found", "told"), [(["NVIDIA"], True), ([], False)])
def test_a_machine_without_a_gpu_gets_no_advice_on_cuda(monkeypatch, found, told):
    # Regression: on a machine without a GPU, on which `pip install torch` installs the CUDA build, it said to install
    # JAX for CUDA.
    monkeypatch.setattr(info, "installed", lambda: (CUDA13, NEEDS13))
    monkeypatch.setattr(info, "gpus", lambda: found)
    assert any("Install JAX for CUDA" in text for text in environment_info()["clashes"]) == told
    assert environment_info()["gpus"] == found


@pytest.mark.parametrize(
    ("file", "kind"),
    [("dev/nvidiactl", "NVIDIA"), ("proc/driver/nvidia/version", "NVIDIA"), ("dev/dxg", "NVIDIA"), ("dev/kfd", "AMD")],
)
def test_a_driver_shows_by_its_files(tmp_path, monkeypatch, file, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpus(tmp_path) == []
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    assert gpus(tmp_path) == [kind]


def test_a_device_that_torch_uses_is_found_without_files(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpus(tmp_path) == ["AMD" if torch.version.hip else "NVIDIA"]


def test_the_command_says_what_clashes(monkeypatch, capsys):
    said = {"clashes": ["one thing", "another"], "cuda": {"torch": None, "nccl of torch": "2.27"}}
    monkeypatch.setattr(t2j_core.__main__, "environment_info", lambda: said)
    assert t2j_core.__main__.main() == 0
    out = capsys.readouterr().out
    assert "clashes: one thing\n                another\n" in out
    assert "cuda: torch none, nccl of torch 2.27\n" in out
    monkeypatch.setattr(t2j_core.__main__, "environment_info", lambda: {"clashes": []})
    t2j_core.__main__.main()
    assert "clashes: none\n" in capsys.readouterr().out
