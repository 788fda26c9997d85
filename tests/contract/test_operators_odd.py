"""The operators in the odd chunks of the list."""

from __future__ import annotations

import pytest
from operators import CHUNKS, check_chunk, same_torch
from runner import Worker


@same_torch
@pytest.mark.parametrize("chunk", range(1, CHUNKS, 2))
def test_operators(worker: Worker, chunk: int) -> None:
    check_chunk(worker, chunk)
