"""Functions of the user's are tried out apart from everything else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .. import _compat
from .._base.errors import T2jWarning, warn
from .._base.jax_inside import as_jax_inside, jax_inside
from .._modules.class_level import in_try
from .rng import turns


@contextlib.contextmanager
def apart(name: str) -> Any:
    """Within, the function `name` is tried out: it neither sees nor changes the state of a real call."""

    def refuse(operation: str) -> Exception:
        return jax_inside(name, f"the operation `{operation}`")

    _compat.close_abandoned_forward_level()  # one that another function has left
    found: Exception | None = None
    with (
        turns,
        _compat.default_torch_state(("cpu",)),
        torch.random.fork_rng(devices=_compat.torch_gpus()),
        _compat.without_compilation(),
        _compat.without_log_of_fake_tensors(),
        _compat.refusing_jax(refuse),
        in_try(),
        np.errstate(all="ignore"),  # of made-up values
    ):
        try:
            yield
        except Exception as error:
            found = as_jax_inside(name, error)
            if found is None:
                raise
        finally:
            is_left = _compat.close_abandoned_forward_level()
    if found is not None:
        raise found
    if is_left:
        warn(_leaves_level(name), T2jWarning)


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Within, functions that PyTorch has compiled run as they are written, so that a mode sees what they do.

    The compiler would take the mode for a part of the function: it compiles once more, and what a mode does that it
    cannot compile gave wrong results (torch 2.13). Its setting is one for all threads, so one thread runs at a time.
    """
    if not _compat.dynamo_is_loaded():
        yield
        return
    with turns, _compat.without_compilation():
        yield


def _leaves_level(name: str) -> str:
    return (
        f"{name} enters a level of forward mode (`torch.autograd.forward_ad.enter_dual_level`) and returns without "
        "leaving it. All threads share the one level, so t2j closes it. Use `with forward_ad.dual_level():`."
    )
