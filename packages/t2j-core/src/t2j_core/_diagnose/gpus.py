"""Which kinds of GPU the machine can use: advice on CUDA does not fit a machine without one."""

from __future__ import annotations

from pathlib import Path

import torch

_FILES = {
    "NVIDIA": ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg"),  # /dev/dxg: in WSL
    "AMD": ("/dev/kfd",),
}


def gpus(root: Path = Path("/")) -> list[str]:
    """The kinds of GPU, `NVIDIA` or `AMD`, that have a driver or a device. The files of drivers are below `root`."""
    found = [kind for kind, files in _FILES.items() if any((root / file.lstrip("/")).exists() for file in files)]
    if torch.cuda.is_available():  # on Windows there are no such files
        found.append("AMD" if torch.version.hip else "NVIDIA")
    return list(dict.fromkeys(found))
