"""Whether native torch has a result to compare with."""

from __future__ import annotations

import random

import numpy as np
import torch
from case import Case
from judge import NotCounted, Tensors, is_dense, is_inexact, native, wide


def seed(number: int) -> None:
    """Seed all generators that draw samples."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def check_is_fair(case: Case) -> None:
    """Raise `NotCounted` if native torch has no result to compare with."""
    if case.unfair:
        raise NotCounted(case.unfair)
    if not all(map(is_dense, case.tensors)):
        raise NotCounted("sparse, nested or quantised input")
    seed(1)
    first = case.expected
    if not first:
        raise NotCounted("no tensor output")
    if not all(map(is_dense, first)):
        raise NotCounted("sparse, nested or quantised output")
    if any(t.dtype == torch.complex32 for t in (*case.tensors, *first)):
        raise NotCounted("dtype that JAX lacks")
    if any(t.device.type != case.how.device for t in first):
        raise NotCounted("output on another device")
    slack = 0.0 if case.how.device == "cpu" else case.tolerance  # sums on a GPU have no fixed order
    seed(2)
    if not are_same(first, native(lambda: case.values(case.tensors)), slack):
        raise NotCounted("random output")


def are_same(first: Tensors, second: Tensors, slack: float = 0.0) -> bool:
    """Whether two runs have given the same values."""
    return all(
        torch.allclose(wide(a), wide(b), rtol=slack, atol=slack, equal_nan=True) if is_inexact(a) else torch.equal(a, b)
        for a, b in zip(first, second, strict=True)
    )
