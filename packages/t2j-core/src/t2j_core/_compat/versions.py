"""The oldest supported versions of JAX and torch."""

from __future__ import annotations

import re

import jax
import jax.extend.core
import torch

JAX_FLOOR = (0, 6, 2)
TORCH_FLOOR = (2, 6, 0)


def _check_floor(name: str, version: str, floor: tuple[int, int, int]) -> None:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers < floor:
        wanted = ".".join(map(str, floor))
        raise ImportError(
            f"t2j-core needs {name} {wanted} or newer.\n  Got: {name} {version}\n"
            f"Run `pip install -U '{name}>={wanted}'`."
        )


_check_floor("jax", jax.__version__, JAX_FLOOR)
_check_floor("torch", torch.__version__, TORCH_FLOOR)
