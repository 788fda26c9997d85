"""The operators in the even chunks of the list."""

from __future__ import annotations

import opdb
import pytest
from operators import CHUNKS, check_chunk, same_torch


@same_torch
@pytest.mark.parametrize("chunk", range(0, CHUNKS, 2))
def test_operators(worker: opdb.Worker, chunk: int) -> None:
    check_chunk(worker, chunk)
