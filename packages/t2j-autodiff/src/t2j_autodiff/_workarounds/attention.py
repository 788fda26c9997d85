"""Modules that compute attention in another way under a function mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional


def is_attention_in_evaluation(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Whether this is attention of a module in evaluation, which would take its fast path without a function mode.

    `nn.MultiheadAttention.forward` and `nn.TransformerEncoderLayer.forward` call one fused operation where nothing
    requires a gradient, unless `torch.overrides.has_torch_function` says that a mode is active.
    """
    return func is torch.nn.functional.multi_head_attention_forward and not kwargs.get("training", True)
