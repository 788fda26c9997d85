"""One sample of each PyTorch operator, called eagerly in float32; `opdb.py` runs more samples, under `jit`."""

from __future__ import annotations

import pytest
from known import differences
from runner import Worker
from same_torch import KNOWN, same_torch

CHUNKS = 48
SLOW = {
    "cdist",
    "grid_sampler_2d",
    "grid_sampler_3d",
    "igamma",
    "igammac",
    "index_reduce:amax",
    "index_reduce:amin",
    "index_reduce:mean",
    "index_reduce:prod",
    "nn.functional.embedding_bag",
    "nn.functional.grid_sample",
    "special.zeta",
}
"""What takes a second and more for one sample, and is left out of the ordinary tests."""


@same_torch
@pytest.mark.thinned(16)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_operators(worker: Worker, chunk: int) -> None:
    """Run the operators of a chunk, and compare what fails with the list."""
    indices = [i for i in range(chunk, len(worker.names), CHUNKS) if worker.names[i] not in SLOW]
    results = [result for index in indices for result in worker.run(index)]
    assert len({r.op for r in results}) == len(indices)
    assert sum(r.outcome == "passed" for r in results) > 3 * len(indices)
    assert not differences(results, KNOWN)
