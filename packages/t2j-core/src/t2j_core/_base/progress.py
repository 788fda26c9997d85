"""Progress: a warning in the log while a function is inferred, traced or compiled for longer than users expect."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from .config import config

logger = logging.getLogger("t2j_core")

PATIENCE: float | None = config.progress_seconds or None  # seconds before the warning; None: no warning


@contextlib.contextmanager
def progress(phase: str, name: str, hint: str, noted: set[str]) -> Iterator[None]:
    """Log a warning while the body runs, if it takes long.

    The body is a `phase`, such as "compiling", of the function `name`. `noted` keeps what was logged, so each phase of
    a function is logged once. At the end the duration is logged at the level INFO. Logging raises no exception, and the
    thread of the timer ends with the body.
    """
    key = f"progress: {phase} {name}"
    if PATIENCE is None or key in noted:
        yield
        return
    start, timer = time.monotonic(), threading.Timer(PATIENCE, _tell, (phase, name, PATIENCE, hint, key, noted))
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # the process can start no more threads, or Python shuts down
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join(1.0)  # not for ever: a handler of the log is the user's
        if key in noted:
            with contextlib.suppress(Exception):
                logger.info("%s %s took %.1f s", phase, name, time.monotonic() - start)


def _tell(phase: str, name: str, seconds: float, hint: str, key: str, noted: set[str]) -> None:
    noted.add(key)
    with contextlib.suppress(Exception):  # handlers and filters are the user's
        logger.warning("t2j: %s %s has taken %g s so far. %s", phase, name, seconds, hint)
