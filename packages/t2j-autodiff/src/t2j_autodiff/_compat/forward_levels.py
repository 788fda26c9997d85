"""Torch's levels of forward mode and of `torch.func`."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable

import torch
import torch.overrides
import torch.utils._pytree
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._functorch import eager_transforms
from torch.autograd import forward_ad


def in_transform() -> bool:
    """Whether a transformation of `torch.func` is running on this thread."""
    return torch._C._functorch.peek_interpreter_stack() is not None


@functools.cache
def prepare_forward_mode() -> None:
    """Import what torch imports when forward mode is first used, without the warnings of its own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def in_forward_mode() -> bool:
    """Whether this thread is inside of a `torch.func.jvp`."""
    return any(level.key() == TransformType.Jvp for level in get_interpreter_stack() or ())


def forward_nesting() -> int:
    """How many calls of `torch.func.jvp` run, on all threads. The first of them opens the level, unless it is open."""
    return eager_transforms.JVP_NESTING


def count_forward_nesting(change: int) -> None:
    """Let `torch.func.jvp` take the level for one that is open, or not any more. No thread runs between."""
    eager_transforms.JVP_NESTING += change


def forward_level_is_open() -> bool:
    """Whether the one level of forward mode that all threads share is open."""
    return forward_ad._current_level >= 0


def open_forward_level() -> None:
    """Open the level of forward mode."""
    forward_ad.enter_dual_level()


def close_forward_level() -> None:
    """Close the level of forward mode. Every tangent is gone from then on."""
    if forward_level_is_open():  # otherwise a function has closed it
        forward_ad.exit_dual_level()


def forward_canary() -> Callable[[], bool]:
    """A function that tells whether the level has been open all the time since."""
    one = torch.ones(1)
    try:
        dual = forward_ad.make_dual(one, one, level=0)
    except RuntimeError:  # it was closed just now
        return lambda: False
    return lambda: forward_ad.unpack_dual(dual, level=0).tangent is not None


def has_tangent(t: torch.Tensor) -> bool:
    """Whether forward mode, which is running, has a tangent for a tensor."""
    return forward_ad.unpack_dual(t).tangent is not None
