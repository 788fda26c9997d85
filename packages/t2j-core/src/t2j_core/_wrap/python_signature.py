"""The signature of a Python callable, as `inspect` shows it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch


def signature_of(fn: Callable[..., Any], *first: str, without: Sequence[str] = ()) -> inspect.Signature:
    """The signature of `fn` with other parameters in front; any, if Python cannot tell it, as of functions in C."""
    try:
        signature = inspect.signature(fn.forward if isinstance(fn, torch.nn.Module) else fn)
    except Exception:  # a callable object may answer anything
        signature = inspect.signature(lambda *args, **kwargs: None)
    names = (name if name not in signature.parameters else f"{name}_" for name in first)
    heads = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names]
    rest = (p for name, p in signature.parameters.items() if name not in without)
    return signature.replace(parameters=[*heads, *rest])
