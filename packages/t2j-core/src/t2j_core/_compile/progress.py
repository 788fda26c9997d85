"""Progress of the compiler, in the log of `t2j_core`."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

logger = logging.getLogger("t2j_core")

PATIENCE = 2.0  # seconds


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """Within, a function is compiled. If that takes more than two seconds, the log says so, and how long it took."""
    start, is_long = time.monotonic(), threading.Event()

    def tell() -> None:
        is_long.set()
        logger.info("compiling %s: this takes seconds, and less in later processes, which find it on disk", name)

    timer = threading.Timer(PATIENCE, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if is_long.is_set():
            logger.info("compiling %s took %.1f s", name, time.monotonic() - start)
