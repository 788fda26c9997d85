"""The oldest supported versions of JAX and torch, and those that some options need."""

from __future__ import annotations

import re

import jax
import jax.extend.core
import torch

JAX_FLOOR = (0, 6, 2)
TORCH_FLOOR = (2, 6, 0)
JAX_WITH_COMMAND_BUFFERS = (0, 10, 0)  # the oldest whose plugin for CUDA was seen to take a call into one
TORCH_THAT_COMPILES = (2, 9, 0)  # inductor of 2.6 runs `into` as an operator instead of writing in place


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _check_floor(name: str, version: str, floor: tuple[int, int, int]) -> None:
    if _numbers(version) < floor:
        wanted = ".".join(map(str, floor))
        raise ImportError(
            f"t2j-core needs {name} {wanted} or newer.\n  Got: {name} {version}\n"
            f"Run `pip install -U '{name}>={wanted}'`."
        )


_check_floor("jax", jax.__version__, JAX_FLOOR)
_check_floor("torch", torch.__version__, TORCH_FLOOR)

can_compile = _numbers(torch.__version__) >= TORCH_THAT_COMPILES
has_command_buffers = _numbers(jax.__version__) >= JAX_WITH_COMMAND_BUFFERS
