"""Torch's state on a thread: autocast, modes, hooks, profiler, the level of forward mode."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch._functorch import eager_transforms
from torch.autograd import forward_ad
from torch.autograd import profiler as torch_profiler

from .._base.text import utf8


def autocast_depth() -> int:
    """How many autocast contexts this thread is inside of. Inside a dispatch mode torch reports autocast as off."""
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


def state_getters() -> tuple[Callable[[], Any], ...]:
    """Functions that all return something false if this thread's torch state is the default, grad mode apart."""
    return (
        torch._C._is_any_autocast_enabled,
        torch.is_inference_mode_enabled,
        torch._C._len_torch_function_stack,
        torch._C._len_torch_dispatch_stack,
        torch._C._functorch.peek_interpreter_stack,
        _has_other_state,
    )


_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # missing before torch 2.7


def _has_saved_tensors_hooks() -> bool:
    return _top_hooks is not None and _top_hooks(False) is not None


_levels = {"are_watched": False}


def watch_forward_levels() -> None:
    """Treat calls as outside torch's default state from now on, so that levels that they leave open are closed."""
    _levels["are_watched"] = True


def _has_other_state() -> bool:
    return (
        _levels["are_watched"]
        or torch_profiler._is_profiler_enabled
        or forward_ad._current_level >= 0
        or (_top_hooks is not None and _top_hooks(False) is not None)  # not a call: this runs in every call
    )


def is_transformed() -> bool:
    """Whether a transformation of `torch.func`, or forward mode, is running."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def close_abandoned_forward_level() -> bool:
    """Close the level of forward mode if a function has entered it and returned without leaving it.

    All threads share the one level (`_current_level` in torch/autograd/forward_ad.py), and torch does not record who
    entered it. It is left open while a `torch.func.jvp` runs, and while a function runs whose code names one that
    enters it.
    """
    if forward_ad._current_level < 0 or eager_transforms.JVP_NESTING:
        return False
    if any(not _ENTERS_LEVEL.isdisjoint(code.co_names) for code in _running_codes()):
        return False
    forward_ad.exit_dual_level()
    return True


_ENTERS_LEVEL = frozenset({"dual_level", "enter_dual_level"})


def _running_codes() -> list[types.CodeType]:
    codes = []
    for frame in sys._current_frames().values():
        below: types.FrameType | None = frame
        while below is not None:
            if below.f_globals.get("__name__") != __name__:
                codes.append(below.f_code)
            below = below.f_back
        del frame, below  # they refer to the arguments of running functions
    return codes


def profiled(name: str) -> contextlib.AbstractContextManager[Any]:
    """A range of that name in torch's profile, if torch records one."""
    return (
        torch_profiler.record_function(utf8(name)) if torch_profiler._is_profiler_enabled else contextlib.nullcontext()
    )


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@contextlib.contextmanager
def default_torch_state(device_types: Iterable[str]) -> Iterator[None]:
    """Torch's thread-local state as a new thread has it: grad mode on, everything else off."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch.overrides import _pop_mode, _push_mode
    from torch.utils._python_dispatch import _disable_current_modes

    with contextlib.ExitStack() as stack:
        # Function modes first, because they see the functions called below.
        modes = [_pop_mode() for _ in range(torch._C._len_torch_function_stack())]
        for mode in modes:
            stack.callback(_push_mode, mode)
        if torch._C._len_torch_dispatch_stack():
            stack.enter_context(_disable_current_modes())
        if torch._C._functorch.peek_interpreter_stack() is not None:
            stack.enter_context(temporarily_clear_interpreter_stack())
        if _has_saved_tensors_hooks():
            # Only the innermost pair of hooks counts. A result that its own node saves is detached: it would refer to
            # that node, in a cycle that no garbage collector sees.
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, _same))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch._C._is_any_autocast_enabled():
            for device_type in device_types:
                # Without the cache, which holds casts of arguments until the outermost context ends. Not if autocast is
                # off anyway: a function that torch compiles would be compiled for both settings of the cache.
                stack.enter_context(torch.autocast(device_type, enabled=False, cache_enabled=False))
        yield
