"""The numbers of kept graphs. They are residuals, and JAX transforms them like any other array.

Under `jax.vmap` a `lax.cond` becomes a selection, row by row, between the residuals of its branches, with zeros where a
branch has none. Users permute, stack and scale pullbacks, and send them to other processes. So each example of a batch
has a number of its own, and a graph is used only for exactly the numbers that it was kept under, in their order.
Numbers are scattered over all positive ones from a random start, because arithmetic on small numbers often gives
another small number.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from t2j_core.extend import numbers_in

from .. import _compat

MISSING = 0  # what JAX fills in for a call that did not run
NOT_KEPT = -1  # of a forward that has kept no graph
_LARGEST = 2**31 - 1  # a prime


def scattered() -> Iterator[int]:
    """Numbers from 1 to 2**31 - 2, each once before any comes again. They follow no order that arithmetic repeats."""
    first = secrets.randbits(31)
    # Each step is a bijection of the numbers of 31 bits. `filter`, `map` and `count` are atomic: all are written in C.
    return filter(lambda number: 0 < number < _LARGEST, map(_scatter, itertools.count(first)))


def _scatter(count: int) -> int:
    bits = count * 0x5A3C9E37 & _LARGEST
    bits = (bits ^ bits >> 16) * 0x7FEB352D & _LARGEST
    return bits ^ bits >> 15


def of_examples(number: int, sizes: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """The numbers of all examples of the batch whose first is `number`: they differ, and none is `MISSING`.

    They are made on the device, because a copy from the host would wait for it.
    """
    places = torch.arange(1, math.prod(sizes) + 1, dtype=torch.int64, device=device)
    return (number * places % _LARGEST).to(torch.int32).reshape(tuple(sizes))  # multiples modulo a prime differ


def are_of_batch(numbers: np.ndarray, sizes: Sequence[int]) -> bool:
    """Whether numbers are those of one whole batch, in its order; without batch axes, whether it is a single one."""
    if numbers.shape != tuple(sizes):
        return False
    return not sizes or numbers.tobytes() == of_examples(int(numbers.flat[0]), sizes).numpy().tobytes()


def is_among(number: int, first: int, sizes: Sequence[int]) -> bool:
    """Whether a number is that of an example of the batch whose first is `first`."""
    return 0 < number * pow(first, -1, _LARGEST) % _LARGEST <= math.prod(sizes)


def as_tensor(number: int, sizes: Sequence[int], device: torch.device) -> torch.Tensor:
    """The residual of a call whose graph has this number, or that has kept none."""
    if not sizes:
        return torch.scalar_tensor(number, dtype=torch.int32, device=device)
    if number == NOT_KEPT:
        return torch.full(tuple(sizes), number, dtype=torch.int32, device=device)
    return of_examples(number, sizes, device)


def read(residual: torch.Tensor) -> np.ndarray:
    """The numbers in a residual, on the host."""
    if not _compat.in_transform():
        return residual.cpu().numpy() if residual.ndim else np.asarray(residual.item(), np.int32)
    return np.asarray(numbers_in(residual), np.int32).reshape(residual.shape)
