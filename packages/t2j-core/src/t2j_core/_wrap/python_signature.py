"""The signature of a Python callable, as `inspect` shows it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch


def signature_of(fn: Callable[..., Any], *first: str, without: Sequence[str] = ()) -> inspect.Signature:
    """The signature of `fn` with the parameters `first` in front; `(*args, **kwargs)` if Python cannot tell it."""
    try:
        signature = inspect.signature(fn.forward if isinstance(fn, torch.nn.Module) else fn)
    except Exception:  # `__signature__` and `__wrapped__` of an object may be anything
        signature = inspect.signature(lambda *args, **kwargs: None)
    names = (name if name not in signature.parameters else f"{name}_" for name in first)
    heads = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names]
    rest = (p for name, p in signature.parameters.items() if name not in without)
    return signature.replace(parameters=[*heads, *rest])
