"""What torchvision needs for its import on a CPU. Import this before torchvision, or what imports it."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import torch


def define_operators() -> None:
    """Declare what torchvision's Python part asks for where its C++ part cannot be loaded.

    The wheels on PyPI need torch's CUDA libraries, which a torch for the CPU does not have. torchvision then lacks its
    compiled operators, but registers shape rules for two of them (torchvision 0.28, `_meta_registrations`).
    """
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    try:
        ctypes.CDLL(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


define_operators()
