"""Whether a pushforward and a pullback are transposes of each other: sum(g t) = sum(r dy) where g = pullback(r)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from .reverse_mode import Tensors

_SEED = 2891336453  # of the numbers that derivatives are compared at
_LOOSE = 0.02

Sides = tuple[Tensors, Tensors, Tensors, Tensors]
"""(g, t, r, dy) as above."""

SCALE = 1.3717421
"""No power of two, so that scaled numbers are rounded differently."""


LARGER = 2.0**14
"""How much larger the cotangent is that shows whether a pullback is linear: larger than a row of a unit matrix."""


def normal(like: torch.Tensor, number: int = 0) -> torch.Tensor:
    """Small random numbers of a generator of their own: nothing is drawn from the user's.

    They are small because a hook on a tensor may clip a large gradient.
    """
    generator = torch.Generator(device=like.device).manual_seed(_SEED + number)
    r = torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    return r * 2**-10 if torch.finfo(like.dtype).eps < 1e-6 else r


def agree(g: Tensors, t: Tensors, r: Tensors, dy: Tensors, *, loosely: bool = False) -> bool:
    """Whether sum(g t) = sum(r dy), up to rounding; `loosely` accepts more of it. What is not finite says nothing."""
    if not any(bool(x.any()) for x in (*g, *dy)):
        return True
    left, right = _products(g, t), _products(r, dy)
    sums = left.sum(), right.sum()
    if not all(bool(total.isfinite()) for total in sums):
        return True
    eps = max(torch.finfo(x.dtype).eps for x in (*g, *dy))
    tolerance = max(math.sqrt(eps), 1e-6) if any(bool(d.any()) for d in dy) else 30 * eps
    if loosely:
        tolerance = max(tolerance, _LOOSE)
    scale = max(float(left.norm()), float(right.norm()))
    return bool((sums[0] - sums[1]).abs() <= tolerance * scale)


def may_be_rounding(sides: Sides, scaled: Sides) -> bool:
    """Whether `sides` differ by no more than each of them loses itself, as in half precision under autocast.

    `scaled` is the same for `SCALE` r and `SCALE` t: without rounding, g and dy would be `SCALE` times as large.
    """
    (g, t, r, dy), (more_g, _, _, more_dy) = sides, scaled
    left, right = _products(g, t), _products(r, dy)
    noise = (left - _products(more_g, t) / SCALE).norm() + (right - _products(r, more_dy) / SCALE).norm()
    return bool((left.sum() - right.sum()).abs() <= 10 * noise)


def is_proportional(g: Tensors, larger: Tensors, factor: float) -> bool:
    """Whether a pullback of `factor` times a cotangent is about `factor` times as large.

    It is not where a hook on a tensor clamps or normalises the gradient. What is not finite says nothing.
    """
    pairs = [(_wide(a), _wide(b) / factor) for a, b in zip(g, larger, strict=True)]
    difference = math.hypot(*(float((a - b).norm()) for a, b in pairs))
    size = math.hypot(*(max(float(a.norm()), float(b.norm())) for a, b in pairs))
    return not math.isfinite(difference) or difference <= _LOOSE * size


def is_telling(g: Tensors, dy: Tensors) -> bool:
    """Whether there is something to compare: finite numbers that are not all zero."""
    return any(bool(x.any()) for x in (*g, *dy)) and all(bool(x.isfinite().all()) for x in (*g, *dy))


def _products(a: Tensors, b: Tensors) -> torch.Tensor:
    """The real parts of all products, in double precision."""
    terms = [(_wide(x) * _wide(y)).real.flatten().cpu() for x, y in zip(a, b, strict=True)]
    return torch.cat(terms) if terms else torch.zeros(0, dtype=torch.float64)


def _wide(t: torch.Tensor) -> torch.Tensor:
    return t.detach().to(torch.complex128 if t.is_complex() else torch.float64)


class RandomState:
    """Where the random numbers of a device are, so that a second run of a function draws what the first one drew."""

    def __init__(self, device: torch.device) -> None:
        self._gpus = [device] if device.type == "cuda" else []
        self._cpu_state = torch.default_generator.get_state()
        self._gpu_states = [torch.cuda.get_rng_state(gpu) for gpu in self._gpus]

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Within, the same numbers are drawn as since this was made; after that, those that would have been drawn."""
        with torch.random.fork_rng(devices=self._gpus):
            torch.default_generator.set_state(self._cpu_state)
            for gpu, state in zip(self._gpus, self._gpu_states, strict=True):
                torch.cuda.set_rng_state(state, gpu)
            yield
