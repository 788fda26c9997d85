"""Which kinds of GPU the machine can use: advice on CUDA does not fit a machine without one."""

from __future__ import annotations

from pathlib import Path

import torch

_FILES = {
    "NVIDIA": ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg"),  # the last is that of WSL
    "AMD": ("/dev/kfd",),
}


def gpus(root: Path = Path("/")) -> list[str]:
    """`NVIDIA` or `AMD`, if there is a driver or a device of that kind. The files are below `root`."""
    found = [kind for kind, files in _FILES.items() if any((root / file.lstrip("/")).exists() for file in files)]
    if torch.cuda.is_available():  # on Windows there are no such files
        found.append("AMD" if torch.version.hip else "NVIDIA")
    return list(dict.fromkeys(found))
