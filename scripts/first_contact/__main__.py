"""The first questions to a machine with a GPU: `python scripts/first_contact [--output FILE] [--device cpu]`.

The riskiest come first: whether a call works, on which thread and stream, what is ordered, what waits, what costs how
much, and what happens after errors. One line of JSON for each question has its answer, or the error and the stacks of
all threads. `-` is the answer to a question that this machine or version cannot be asked.

Some processes ask the questions. Each question has a limit. One that hangs or crashes takes its process with it, and
the questions after it are asked in a new one. How each process ends is a question too. Fails if a question has no
answer.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

HERE = Path(__file__).parent
# Modules whose questions share a process. The last question of `threads` is how a process ends that had many threads.
# Those of `command_buffers` are apart because a failed capture may leave the GPU in any state.
PROCESSES = (("calls", "threads"), ("command_buffers",), ("costs", "waits", "memory", "compiled"))
GRACE = 10.0  # seconds after the limit of a question, in which its process writes the stacks and ends


def main() -> None:
    """Ask all questions, one process after the other."""
    parser = argparse.ArgumentParser(description="The first questions to a machine with a GPU.")
    parser.add_argument("--output", type=Path, help="a file for the lines, which are also printed")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the questions there")
    parser.add_argument("--seconds", type=float, default=110, help="the limit of all questions together")
    parser.add_argument("--patience", type=float, default=1, help="multiplies the limit of each question")
    parser.add_argument("--also", type=Path, help="a Python file with further questions, which are asked first")
    parser.add_argument("--only", nargs="*", help="only these of the modules: calls costs ...")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    own = [[str(options.also.resolve())]] if options.also else []
    chosen = [[str(HERE / name) for name in names if wanted(name, options.only)] for names in PROCESSES]
    answers, limits = Answers(options.output), Limits(end, options.patience)
    for modules in (*own, *filter(None, chosen)):
        ask(modules, answers, limits, environment(options.device))
    sys.exit(answers.failed)


def wanted(name: str, only: Sequence[str] | None) -> bool:
    """Whether a module is among the chosen ones."""
    return only is None or name in only


def environment(device: str) -> dict[str, str]:
    """The environment of the processes. Two allocators share the GPU, so JAX must not reserve most of it."""
    quiet = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
    place = {"T2J_FIRST_DEVICE": device, **({"JAX_PLATFORMS": "cpu"} if device == "cpu" else {})}
    return {**quiet, **os.environ, **place}


class Answers:
    """Writes the answers, and remembers whether one is missing."""

    def __init__(self, path: Path | None) -> None:
        self.failed = False
        self._file = None if path is None else path.open("w")

    def add(self, row: dict[str, Any]) -> None:
        """Write one line to the file, and a short one to stdout."""
        self.failed |= "error" in row
        if self._file:
            self._file.write(f"{json.dumps(row)}\n")
            self._file.flush()
        shown = {key: value for key, value in row.items() if key != "stacks"}
        sys.stdout.write(f"{json.dumps(shown)[:1000]}\n")
        sys.stdout.flush()


class Limits(NamedTuple):
    """When everything must have ended, on the monotonic clock, and by what the limit of each question is multiplied."""

    end: float
    patience: float


def ask(modules: Sequence[str], answers: Answers, limits: Limits, env: dict[str, str]) -> None:
    """Ask the questions of some modules, in a new process after each one that ends it."""
    title = "+".join(Path(module).stem for module in modules)
    skip: int | None = 0
    while skip is not None:
        if time.monotonic() > limits.end:
            answers.add({"question": f"start of {title}", "seconds": 0, "error": "There was no time to ask more."})
            return
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            command = [sys.executable, str(HERE / "_worker.py"), *map(str, (*limits, skip)), *modules]
            asking = Asking(Worker(command, env, log), answers, title)
            asking.run()
            skip = asking.following


class Worker:
    """A process that sends messages, each a line of JSON."""

    def __init__(self, command: Sequence[str], env: dict[str, str], log: TextIO) -> None:
        self.log = log
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=env, text=True)
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines.put(line)
        self._lines.put(None)

    def next(self, seconds: float) -> dict[str, Any] | None:
        """The next message; None after the last. A process that sends none within that time is killed."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self.process.kill()
            line = None
        return None if line is None else json.loads(line)

    def end(self, seconds: float) -> int | None:
        """The exit code. A process that takes longer is killed; None if even that takes too long."""
        for _ in range(2):
            try:
                return self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return None

    def written(self) -> str:
        """The stacks that the process wrote to stderr, or else the end of what it wrote."""
        self.log.seek(0)
        text = self.log.read()
        stacks = max(text.rfind("Timeout ("), text.rfind("Fatal Python error"))
        return text[-6000:] if stacks < 0 else text[stacks:][:6000]


class Asking:
    """The questions that one process asks."""

    def __init__(self, worker: Worker, answers: Answers, title: str) -> None:
        self._worker, self._answers, self._title = worker, answers, title
        self._open, self._limit = "start", 60.0  # what has begun and has no answer, and the seconds it may take
        self.following: int | None = None  # the number of the question after it; None if there is none to be asked

    def run(self) -> None:
        """Record the answers until the process ends, and how it ended."""
        start = time.monotonic()
        while message := self._worker.next(self._limit + GRACE):
            if "begin" in message:
                self._open, self._limit = message["begin"], message["within"]
                self.following = message["following"]
                start = time.monotonic()
            else:
                self._answers.add(message)
        self._ended(self._worker.end(self._limit + GRACE), round(time.monotonic() - start, 2))

    def _ended(self, code: int | None, seconds: float) -> None:
        name = f"{self._open} of {self._title}" if self._open in ("start", "end") else self._open
        if self._open == "end" and code == 0:
            self._answers.add({"question": name, "seconds": seconds, "answer": {"exit code": 0}})
            return
        error = f"The process ended with code {code}; the limit was {self._limit:g} s."
        self._answers.add({"question": name, "seconds": seconds, "error": error, "stacks": self._worker.written()})


if __name__ == "__main__":
    main()
