"""Processes that run operators or modules, and what they report."""

from __future__ import annotations

import json
import math
import os
import queue
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

WORKER = Path(__file__).parent / "worker.py"
START = 300.0  # seconds; the first read from a disk is slow
SUITES = {"operators": "", "second": "second derivatives", "train": "in training", "eval": "in evaluation"}
"""What a process can run, and how a column of the table names it besides its dtype."""

Key = tuple[str, str, str, int]
"""The key of an outcome: operator or module, column, check and sample."""


@dataclass(frozen=True)
class Result:
    """The outcome of one check."""

    op: str
    column: str
    check: str
    sample: int
    outcome: str  # "passed", "failed" or "not counted"
    reason: str = ""
    seconds: float = 0.0
    not_compiled: str = ""  # why it was not, if it was to be

    @property
    def key(self) -> Key:
        return self.op, self.column, self.check, self.sample


class Died(Exception):
    """The worker process ended, or did not respond in time."""


class OutOfTime(Exception):
    """The time of the whole run is over."""


@dataclass
class Worker:
    """A process that runs operators. It is started again when it dies."""

    dtype: str
    samples: int
    eager: bool = False
    compiles: bool = False
    patience: float = 300.0  # seconds for one check
    device: str = "cpu"
    end: float = math.inf  # end of the whole run, by the monotonic clock
    names: list[str] = field(default_factory=list)
    device_name: str = ""
    suite: str = "operators"
    _process: subprocess.Popen[str] | None = None
    _pending: str = ""

    @property
    def column(self) -> str:
        """What the outcomes are listed and counted under: the dtype, and what else is not as usual."""
        return " ".join(filter(None, [self.dtype, SUITES.get(self.suite), "compiled" * self.compiles]))

    @property
    def kind(self) -> str:
        """What the process runs."""
        return "modules" if self.suite in ("train", "eval") else "operators"

    def start(self) -> None:
        """Start the process, and wait until it has loaded the operators."""
        self._log = tempfile.TemporaryFile(mode="w+", errors="replace")
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu" if self.device == "cpu" else f"{self.device},cpu",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # many processes share a GPU, each with two allocators
            "JAX_ENABLE_X64": str(int(self.dtype in ("float64", "complex128"))),
            "OMP_NUM_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(self.eager)),  # eager calls mostly compile
        }
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), self.suite, self.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )
        self._pending = ""
        reply = self._reply(START)
        self.names, self.device_name = reply["names"], reply.get("device", "")

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._log.close()
            self._process = None

    def run(self, index: int) -> list[Result]:
        """All results of one operator. A check that kills the process is a failure, and the next sample follows.

        It also follows after a check that leaves the process without its GPU; that check keeps its outcome.
        """
        results: list[Result] = []
        first = 0
        while first < self.samples:
            at = {"sample": first, "check": "samples"}
            try:
                if self._process is None:
                    self.start()
                self._ask(index, first)
                while "done" not in (reply := self._reply()):
                    at = reply
                    if "outcome" in reply:
                        results.append(Result(self.names[index], self.column, **_fields(reply)))
                    if reply.get("lost"):
                        break
                else:
                    break
                self.stop()  # the process cannot use its GPU any more
                first = at["sample"] + 1
            except Died as death:
                self.stop()
                place = at["check"], at["sample"]
                results.append(Result(self.names[index], self.column, *place, "failed", str(death)))
                first = at["sample"] + 1
        return results

    def _ask(self, index: int, first: int) -> None:
        request = {"op": index, "dtype": self.dtype, "samples": self.samples, "first": first}
        request |= {"eager": self.eager, "compile": self.compiles}
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Died(self._epitaph()) from None

    def _reply(self, patience: float | None = None) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        patience = patience or self.patience
        fd, end = self._process.stdout.fileno(), min(time.monotonic() + patience, self.end)
        while "\n" not in self._pending:
            if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
                if end == self.end:
                    raise OutOfTime
                raise Died(f"the check took more than {patience:g} s")
            data = os.read(fd, 1 << 16)
            if not data:
                raise Died(self._epitaph())
            self._pending += data.decode()
        line, _, self._pending = self._pending.partition("\n")
        return json.loads(line)

    def _epitaph(self) -> str:
        assert self._process is not None
        code = self._process.wait(30)
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        told = (line for line in lines if not line.startswith("raise "))
        said = next((line for line in told if "rror" in line or "terminate" in line or "Check" in line), "")
        return f"the process died ({f'signal {-code}' if code < 0 else f'code {code}'}) {said}"[:300].strip()


def _fields(reply: dict[str, Any]) -> dict[str, Any]:
    return {
        name: reply[name]
        for name in ("check", "sample", "outcome", "reason", "seconds", "not_compiled")
        if name in reply
    }


def started(worker: Worker, jobs: int) -> list[Worker]:
    """Several processes like this one, which start at the same time."""
    workers = [replace(worker) for _ in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(Worker.start, workers))
    return workers


def run_all(
    workers: Sequence[Worker], indices: Sequence[int], told: Callable[[list[Result]], Any] = list
) -> list[Result]:
    """The results of many operators from several processes at once, without operators for which there was no time."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in indices:
        waiting.put(index)
    results: dict[int, list[Result]] = {}

    def serve(worker: Worker) -> None:
        try:
            while time.monotonic() < worker.end:
                index = waiting.get_nowait()
                results[index] = worker.run(index)
                told(results[index])
        except (queue.Empty, OutOfTime):
            return
        finally:
            worker.stop()

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(serve, workers))
    return [result for index in sorted(results) for result in results[index]]
