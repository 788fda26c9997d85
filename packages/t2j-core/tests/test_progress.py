"""What takes long is told in the log, while it goes on."""

from __future__ import annotations

import logging
import threading

import jax.numpy as jnp
import pytest
import torch
from common import run_python
from t2j_core import torch2jax
from t2j_core._base import progress
from t2j_core._base.progress import progress as in_progress


class Waited(logging.Handler):
    """Knows when something is told, so that what takes long may end."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.is_told = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.levelname} {record.getMessage()}")
        self.is_told.set()


@pytest.fixture
def log(monkeypatch):
    """The log, where nothing is quick enough."""
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    handler, logger = Waited(), logging.getLogger("t2j_core")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_inference_is_told_while_it_runs_once_for_each_function(log):
    def slow(x):
        assert log.is_told.wait(60)
        return x + 1

    f = torch2jax(slow)
    assert f(jnp.ones(3)).tolist() == [2.0] * 3
    (text,) = log.texts
    assert text.startswith("WARNING t2j: inferring the outputs of slow has taken 0 s so far.")
    assert "`output_shapes=`" in text
    f(jnp.ones(4))  # another signature
    assert len(log.texts) == 1
    torch2jax(slow)(jnp.ones(3))
    assert len(log.texts) == 2


def test_declared_outputs_are_not_inferred(log):
    torch2jax(torch.sin, output_shapes=(3,))(jnp.ones(3))
    assert log.texts == []


def test_the_time_is_told_in_the_end(log, caplog):
    with caplog.at_level(logging.INFO, "t2j_core"), in_progress("counting", "sheep", "Sleep.", set()):
        assert log.is_told.wait(60)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "counting sheep took" in caplog.text


def test_no_thread_is_left_and_the_quick_is_not_told(log, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 3600.0)
    before = threading.active_count()
    noted: set[str] = set()
    with in_progress("counting", "sheep", "Sleep.", noted):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    assert (noted, log.texts) == (set(), [])


def test_none_is_told_where_the_switch_is_off(log, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", None)
    before = threading.active_count()
    with in_progress("counting", "sheep", "Sleep.", set()):
        assert threading.active_count() == before
    assert log.texts == []


def test_an_exception_passes_through(log):
    with pytest.raises(ZeroDivisionError), in_progress("counting", "sheep", "Sleep.", set()):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="shape"):
        torch2jax(lambda x: x.reshape(7))(jnp.ones(3))


def test_a_handler_that_fails_and_a_system_without_threads_change_nothing(log, monkeypatch):
    def fail(record):
        log.is_told.set()
        raise ValueError("no log today")

    monkeypatch.setattr(log, "emit", fail)
    with in_progress("counting", "sheep", "Sleep.", set()):
        assert log.is_told.wait(60)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert torch2jax(torch.neg)(jnp.ones(3)).tolist() == [-1.0] * 3


def no_thread(self):
    raise RuntimeError("can't start new thread")


PROGRAM = """
import threading, time
import jax.numpy as jnp
from t2j_core import torch2jax
from t2j_core._base import progress

told = threading.Event()
progress.logger.addFilter(lambda record: told.set() or True)

def slow(x):
    told.wait({seconds})
    return x + 1

print(torch2jax(slow)(jnp.ones(3)))
"""


def test_a_user_sees_it_without_any_settings_and_may_silence_it():
    shown = run_python(PROGRAM.format(seconds=60), T2J_PROGRESS_SECONDS="1")
    assert "t2j: inferring the outputs of slow has taken 1 s so far" in shown.stderr
    assert shown.stdout == "[2. 2. 2.]\n"
    silent = run_python(PROGRAM.format(seconds=0.01), T2J_PROGRESS_SECONDS="0")
    assert "t2j:" not in silent.stderr
    quiet = "import logging; logging.getLogger('t2j_core').setLevel(logging.ERROR)\n" + PROGRAM.format(seconds=2)
    assert "t2j:" not in run_python(quiet, T2J_PROGRESS_SECONDS="1").stderr
