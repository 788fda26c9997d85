"""Traces of derivatives that take long are told in the log, while they go on."""

from __future__ import annotations

import logging
import threading

import jax
import jax.numpy as jnp
import torch
from t2j_autodiff import torch2jax
from t2j_core._base import progress


class Waited(logging.Handler):
    """Knows when a trace is told."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.is_told = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "tracing" in record.getMessage():
            self.texts.append(record.getMessage())
            self.is_told.set()


def test_a_trace_is_told_while_it_runs(monkeypatch):
    log, logger, runs = Waited(), logging.getLogger("t2j_core"), []

    def slow(x):
        runs.append(0)
        if len(runs) > 1:  # the first is for inference
            assert log.is_told.wait(60)
        return torch.tanh(x).sum()

    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    logger.addHandler(log)
    try:
        f = torch2jax(slow, residuals="graph")
        gradient = jax.grad(f)(jnp.zeros(3))
    finally:
        logger.removeHandler(log)
    assert gradient.tolist() == [1.0, 1.0, 1.0]
    (text,) = log.texts
    assert text.startswith("t2j: tracing the derivative of slow has taken 0 s so far.")
    assert "from a traced graph" in f.explain()
