"""Asks the questions of some modules, and writes what happens to stdout: `_worker.py END PATIENCE SKIP MODULE...`.

Each line is JSON: `begin` with the name of a question and its limit, then `question` with its answer or error. After
the limit the stacks of all threads go to stderr and the process exits, even if a thread keeps the GIL.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

STARTING, ENDING = 60.0, 20.0  # seconds to the first question, and from the last one to the end of the process


def main() -> None:
    """Ask from question number SKIP on, until END on the monotonic clock, with limits PATIENCE times as long."""
    end, patience, skip = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    channel = own_stdout()
    faulthandler.enable()
    begin(channel, "start", STARTING * patience, end)
    for module in sys.argv[4:]:
        sys.path.insert(0, str(Path(module).parent))
        importlib.import_module(Path(module).stem)
    from _questions import QUESTIONS

    for number, question in enumerate(QUESTIONS[skip:], skip + 1):
        following = number if number < len(QUESTIONS) else None
        begin(channel, question.name, question.seconds * patience, end, following)
        is_late = time.monotonic() > end - 1
        found = {"seconds": 0, "error": "There was no time to ask it."} if is_late else answer(question)
        write(channel, {"question": question.name, **found})
    begin(channel, "end", ENDING * patience, math.inf)


def own_stdout() -> TextIO:
    """Standard output for the messages alone: what others print goes to stderr."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def write(channel: TextIO, message: dict[str, Any]) -> None:
    """Write a message."""
    channel.write(f"{json.dumps(message, default=str)}\n")
    channel.flush()


def begin(channel: TextIO, name: str, seconds: float, end: float, following: int | None = None) -> None:
    """Announce a question and the number of the following one, and exit with all stacks unless that begins in time."""
    seconds = max(min(seconds, end - time.monotonic()), 1.0)
    write(channel, {"begin": name, "within": round(seconds, 1), "following": following})
    faulthandler.dump_traceback_later(seconds, exit=True)


def answer(question: Any) -> dict[str, Any]:
    """The answer or the error of a question, and how long it took."""
    from _questions import IS_GPU, NOT_HERE

    start = time.perf_counter()
    try:
        found = {"answer": NOT_HERE if question.needs_gpu and not IS_GPU else question.ask()}
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"[:2000], "stacks": traceback.format_exc()[-4000:]}
    return {"seconds": round(time.perf_counter() - start, 2), **found}


if __name__ == "__main__":
    main()
