"""The interpreter stack of `torch.func`, and the one level of forward mode that a process has."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable

import torch
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._functorch import eager_transforms
from torch.autograd import forward_ad


def in_transform() -> bool:
    """Whether a transformation of `torch.func` is running on this thread."""
    return torch._C._functorch.peek_interpreter_stack() is not None


@functools.cache
def prepare_forward_mode() -> None:
    """Import what the first use of forward mode imports, without the warnings of that module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def in_forward_mode() -> bool:
    """Whether a `torch.func.jvp` is running on this thread."""
    return any(level.key() == TransformType.Jvp for level in get_interpreter_stack() or ())


def forward_nesting() -> int:
    """How many calls of `torch.func.jvp` run on all threads (`JVP_NESTING` in torch/_functorch/eager_transforms.py).

    A call that finds itself to be the only one opens the level, and closes it at its end.
    """
    return eager_transforms.JVP_NESTING


def count_forward_nesting(change: int) -> None:
    """Add to the number of calls, so that `torch.func.jvp` neither opens nor closes the level."""
    eager_transforms.JVP_NESTING += change


def forward_level_is_open() -> bool:
    """Whether the level is open, by `torch.func.jvp` or by `torch.autograd.forward_ad.dual_level`."""
    return forward_ad._current_level >= 0


def open_forward_level() -> None:
    """Open the level."""
    forward_ad.enter_dual_level()


def close_forward_level() -> None:
    """Close the level, which clears every tangent on all threads."""
    if forward_level_is_open():  # a function may have closed it
        forward_ad.exit_dual_level()


def forward_canary() -> Callable[[], bool]:
    """A function that tells whether the level has stayed open since: a tangent made now still exists."""
    one = torch.ones(1)
    try:
        dual = forward_ad.make_dual(one, one, level=0)
    except RuntimeError:  # another thread has just closed it
        return lambda: False
    return lambda: forward_ad.unpack_dual(dual, level=0).tangent is not None


def has_tangent(t: torch.Tensor) -> bool:
    """Whether a tensor has a tangent at the running level of forward mode."""
    return forward_ad.unpack_dual(t).tangent is not None
