"""Isolation of the runs for inference: the user's function neither sees nor changes the state of a real call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from .. import _compat
from .._base.errors import T2jWarning, warn
from .._base.jax_inside import as_jax_inside, jax_inside
from .._base.turns import turns
from .._modules.class_level import trial


@contextlib.contextmanager
def apart(name: str) -> Iterator[None]:
    """Within, the function `name` is tried out: with torch's default state, and without calling JAX."""

    def refuse(operation: str) -> Exception:
        return jax_inside(name, f"the operation `{operation}`")

    _compat.close_abandoned_forward_level()  # one that another function has left open
    found: Exception | None = None
    with (
        turns,
        _compat.default_torch_state(("cpu",)),
        torch.random.fork_rng(devices=_compat.torch_gpus()),
        _compat.without_compilation(),
        _compat.without_log_of_fake_tensors(),
        _compat.refusing_jax(refuse),
        trial(),
        np.errstate(all="ignore"),  # made-up values overflow, divide by zero
    ):
        try:
            yield
        except Exception as error:
            found = as_jax_inside(name, error)
            if found is None:
                raise
        finally:
            is_left_open = _compat.close_abandoned_forward_level()
    if found is not None:
        raise found
    if is_left_open:
        warn(_leaves_level(name), T2jWarning)


def _leaves_level(name: str) -> str:
    return (
        f"{name} enters a level of forward mode (`torch.autograd.forward_ad.enter_dual_level`) and returns without "
        "leaving it. All threads share the one level, so t2j closes it. Use `with forward_ad.dual_level():`."
    )
