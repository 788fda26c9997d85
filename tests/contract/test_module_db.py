"""One sample of some of PyTorch's modules, called eagerly in float32 in training; `opdb.py --suite` runs all."""

from __future__ import annotations

import pytest
from case import How
from same_torch import same_torch

pytest.importorskip("expecttest", reason="torch's list of modules imports it")

EVERY = 25
MORE = ("nn.BatchNorm1d", "nn.GRU", "nn.MultiheadAttention")  # statistics, weights that are tied to attributes, masks


@same_torch
def test_modules() -> None:
    from module_samples import Modules
    from worker import results_of

    suite = Modules(training=True)
    chosen = [info for i, info in enumerate(suite.subjects) if i % EVERY == 0 or info.name in MORE]
    how = How("float32", 1, lambda f: f)
    for info in chosen:
        outcomes = [result for result in results_of(suite, info, how, 0) if "outcome" in result]
        assert [result for result in outcomes if result["outcome"] == "failed"] == [], info.name
        assert len(outcomes) == len(suite.checks(how)), info.name
        assert "passed" in {result["outcome"] for result in outcomes}, info.name
