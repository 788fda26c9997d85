"""The one lock that t2j holds while the user's code runs."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager

turns: AbstractContextManager[object] = threading.RLock()
"""Threads take turns with the state that torch shares between them: the default generators, the level of forward mode,
the choice of attention kernels.

There is no second such lock on a CPU. With two, a signal handler or a finalizer that calls a function in the middle of
another call could wait for a thread which waits for the interrupted call. (Nobody waits for long for a `Turn` of
`native/turn.h`.) On a GPU, functions with `rng=True` hold a lock of its generator (`_infer.rng`). It is taken after
this one, and given back before one waits for this one; only such a handler does not keep to that.
"""
