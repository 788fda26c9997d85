"""The process that runs PyTorch's operators."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from runner import Worker


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One process for all operators of a file, because torch needs a long time to list them."""
    pytest.importorskip("expecttest", reason="torch's list of operators imports it")
    pytest.importorskip("scipy", reason="torch draws samples with it")
    worker = Worker("float32", samples=1, eager=True)
    worker.start()
    yield worker
    worker.stop()
