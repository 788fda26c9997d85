"""`environment_info` and the self-test of `python -m t2j_core`."""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
import torch

from .._lowering import native
from .._wrap.torch2jax import torch2jax
from .clashes import clashes, installed
from .gpus import gpus


def environment_info() -> dict[str, Any]:
    """Versions, devices and settings that a bug report needs, and whether the GPU libraries clash.

    Returns:
      A dict with the keys `t2j_core`, `python`, `platform`, `jax`, `jaxlib`, `numpy`, `torch` and `xla_ffi` (versions);
      `sisters` (versions of t2j-autodiff and t2j-dist, None where one is not installed);
      `jax_devices`, `jax_x64` and `torch_threads` (settings); `gpus` (a list of the kinds of GPU that the machine has
      drivers for), `cuda` and `gpu_wheels` (dicts of versions of GPU libraries) and `clashes` (a list of sentences,
      empty if the libraries fit together, or on a machine without a GPU); `exchange_api` (whether tensors cross through
      DLPack's C functions), `live_sites` (compiled programs that call torch) and `escaped_calls` (finished calls whose
      tensors over XLA's memory are still alive).

    >>> sorted(environment_info())[:3]
    ['clashes', 'cuda', 'escaped_calls']
    """
    from .. import __version__

    versions, needs = installed()
    found = gpus()
    return {
        "t2j_core": __version__,
        "sisters": {name: _version_of(name) for name in ("t2j-autodiff", "t2j-dist")},
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "xla_ffi": _ffi_version(),
        "jax_devices": [str(device) for device in jax.devices()],
        "jax_x64": bool(jax.config.read("jax_enable_x64")),
        "torch_threads": torch.get_num_threads(),
        "gpus": found,
        "cuda": _cuda(),
        "gpu_wheels": {name: v for name, v in sorted(versions.items()) if name != "jaxlib" and "torch" not in name},
        "clashes": clashes(versions, needs) if found else [],
        "exchange_api": native.uses_exchange_api(),
        "live_sites": native.counters()["live_sites"],
        "escaped_calls": native.counters()["escaped_calls"],
    }


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _ffi_version() -> str:
    """The version of XLA's FFI that the installed jaxlib uses, from the header it ships."""
    header = Path(jaxlib.__file__).parent / "include" / "xla" / "ffi" / "api" / "c_api.h"
    text = header.read_text() if header.exists() else ""
    return ".".join(re.findall(r"#define XLA_FFI_API_(?:MAJOR|MINOR) (\d+)", text)) or "unknown"


def _cuda() -> dict[str, Any]:
    libraries = {
        "torch": torch.version.cuda,
        "rocm of torch": torch.version.hip,
        "cudnn of torch": None,
        "nccl of torch": None,
    }
    if torch.cuda.is_available():
        libraries["cudnn of torch"] = str(torch.backends.cudnn.version())
        libraries["nccl of torch"] = ".".join(map(str, torch.cuda.nccl.version()))
        libraries["device"] = torch.cuda.get_device_name()
    return libraries


def self_test() -> str:
    """Call torch from JAX once, eagerly and jitted, and compare with NumPy. Returns a sentence."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    f = torch2jax(lambda t: torch.sin(t).sum(0))
    for call in (f, jax.jit(f)):
        np.testing.assert_allclose(np.asarray(call(x)), np.sin(x).sum(0), rtol=1e-5)
    return f"torch ran inside XLA on {jax.devices()[0]}, eagerly and under jit, and gave the right numbers"
