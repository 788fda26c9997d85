"""The one lock that t2j holds while the user's code runs."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager

turns: AbstractContextManager[object] = threading.RLock()
"""Threads take turns with the state that torch shares between them: the default generators, the level of forward mode,
the choice of attention kernels.

There is no second such lock. With two, a signal handler or a finalizer that calls a function in the middle of another
call could wait for a thread which waits for the interrupted call. (Nobody waits for long for a `Turn` of
`native/turn.h`.)
"""
