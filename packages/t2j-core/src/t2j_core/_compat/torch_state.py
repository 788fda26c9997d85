"""Torch's state on a thread: autocast, modes, hooks, profiler, the level of forward mode."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch._functorch import eager_transforms
from torch.autograd import forward_ad
from torch.autograd import profiler as torch_profiler

from .._base.text import utf8


def autocast_depth() -> int:
    """How many autocast contexts this thread is inside of; below a dispatch mode nothing else tells."""
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


def state_getters() -> tuple[Callable[[], Any], ...]:
    """Functions that are all false while this thread's torch state is the default (grad mode apart), unprofiled."""
    return (
        torch._C._is_any_autocast_enabled,
        torch.is_inference_mode_enabled,
        torch._C._len_torch_function_stack,
        torch._C._len_torch_dispatch_stack,
        torch._C._functorch.peek_interpreter_stack,
        _is_watched,
    )


_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # torch before 2.7 does not tell


def _has_saved_tensors_hooks() -> bool:
    return _top_hooks is not None and _top_hooks(False) is not None


_levels = {"are_watched": False}


def watch_forward_levels() -> None:
    """Let every call from now on be one in which torch's state is looked after."""
    _levels["are_watched"] = True


def _is_watched() -> bool:
    return (
        _levels["are_watched"]
        or torch_profiler._is_profiler_enabled
        or forward_ad._current_level >= 0
        or (_top_hooks is not None and _top_hooks(False) is not None)
    )


def is_transformed() -> bool:
    """Whether a transformation of `torch.func`, or forward mode, is running."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def close_abandoned_forward_level() -> bool:
    """Close the level of forward mode if a function has entered it and returned without leaving it.

    All threads share the one level, and nothing tells who has entered it. It is left alone while a `torch.func.jvp`
    runs, and while any thread is inside of a function that names what enters it.
    """
    if forward_ad._current_level < 0 or eager_transforms.JVP_NESTING:
        return False
    if any(not _ENTERS_LEVEL.isdisjoint(code.co_names) for code in _running_codes()):
        return False
    forward_ad.exit_dual_level()
    return True


_ENTERS_LEVEL = frozenset({"dual_level", "enter_dual_level"})


def _running_codes() -> list[Any]:
    codes = []
    for frame in sys._current_frames().values():
        below: Any = frame
        while below is not None:
            if below.f_globals.get("__name__") != __name__:
                codes.append(below.f_code)
            below = below.f_back
        del frame, below  # which hold the arguments of the functions that run
    return codes


def profiled(name: str) -> contextlib.AbstractContextManager[Any]:
    """A range of that name in the profile that torch records, if it records one."""
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
        # Function modes first: they would see the rest.
        modes = [_pop_mode() for _ in range(torch._C._len_torch_function_stack())]
        for mode in modes:
            stack.callback(_push_mode, mode)
        if torch._C._len_torch_dispatch_stack():
            stack.enter_context(_disable_current_modes())
        if torch._C._functorch.peek_interpreter_stack() is not None:
            stack.enter_context(temporarily_clear_interpreter_stack())
        if _has_saved_tensors_hooks():
            # Only the top pair counts. A result that its own node saves comes with that node: a cycle of no collector.
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, _same))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch._C._is_any_autocast_enabled():
            for device_type in device_types:
                # Without the cache, which is emptied when the outermost context ends and holds casts of arguments till
                # then. Not where it is off anyway: a function that torch compiles would be compiled for both.
                stack.enter_context(torch.autocast(device_type, enabled=False, cache_enabled=False))
        yield
