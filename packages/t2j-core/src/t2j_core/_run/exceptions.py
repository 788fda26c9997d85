"""The exceptions of a torch function, as XLA takes them."""

from __future__ import annotations

import collections
import logging
import math
import time
import traceback
from typing import Any

import torch

from .._base.bounded import remember
from .._base.frames import chain_of, hide_own_frames
from .._base.jax_inside import as_jax_inside
from .._infer.notes import (
    note_cuda_graphs,
    note_jax_dtypes,
    note_missing_width,
    note_mixed_dtypes,
    note_numbers,
)
from .._signature.signature import Signature
from .originals import keep, tag

logger = logging.getLogger("t2j_core")


_held: collections.deque[Any] = collections.deque(maxlen=16)


def hold(arrays: Any) -> None:
    """Keep the arrays of an eager call with an escape alive for a while: NumPy views of them cannot be moved."""
    _held.append(arrays)


# --- exceptions ---------------------------------------------------------------------------------------------------

_on_several_devices: dict[str, None] = {}  # the names of functions in programs for several devices
_logged: dict[str, float] = {}
_LIMIT = 8000  # nested calls embed each other's text; without a limit it doubles with every level

_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (KeyboardInterrupt, 1),
    (NotImplementedError, 12),
    (MemoryError, 8),
    (torch.OutOfMemoryError, 8),
    (IndexError, 11),
    ((ValueError), 3),
    ((TypeError), 3),
)


def note_several_devices(name: str) -> None:
    """Note that a function is in a program for several devices, which wait for each other."""
    remember(_on_several_devices, name, None)


def report(signature: Signature | None, error: BaseException, depth: int = 1) -> tuple[int, str]:
    """Keep an exception for `last_error` and word it for XLA: (status code, message).

    It was raised in a call inside of `depth - 1` others of this thread.
    """
    if signature is not None:
        error = as_jax_inside(signature.name, error) or error
        note_numbers(error, signature.call_tree)
        note_mixed_dtypes(error, signature.call_tree, signature.operands)
    note_missing_width(error)
    note_jax_dtypes(error)
    note_cuda_graphs(error)
    _clear_frames(error)
    hide_own_frames(error)
    text, summary = _worded(error)
    number = keep(error, depth)
    if len(text) > _LIMIT:
        text = f"{text[: _LIMIT // 2]}\n  [...]\n{text[-_LIMIT // 2 :]}"
    name = signature.name if signature else "a torch function"
    if name in _on_several_devices:
        _log(name, text)
    code = next((code for kind, code in _CODES if isinstance(error, kind)), 13)
    message = f"{tag(number)} {summary[:2000]}\n\nRaised in the torch function {name}:\n{text}"
    return code, _plain_text(message)


def _worded(error: BaseException) -> tuple[str, str]:
    """An exception with its traceback, and without."""
    try:
        text = "".join(traceback.format_exception(error))
        return text, "".join(traceback.format_exception_only(error)).strip()
    except Exception:  # its class is the user's, and may do anything
        return type(error).__name__, type(error).__name__


def _plain_text(text: str) -> str:
    """A text that C and XLA can take: lone surrogates and zeros as escapes."""
    return text.encode("utf-8", "backslashreplace").replace(b"\0", b"\\0").decode()


def _log(name: str, text: str) -> None:
    """Show an exception now: in a collective the other devices wait for this one, until XLA ends the process."""
    now = time.monotonic()
    if now - _logged.get(name, -math.inf) > 1:  # all devices may raise at once
        _logged.pop(name, None)
        remember(_logged, name, now)
        logger.error("The torch function %s raised on one of several devices:\n%s", name, text)


def _clear_frames(error: BaseException) -> None:
    """Frames keep the argument tensors, and with them XLA's memory, alive. Those of the caller are left alone."""
    for item in chain_of(error):
        traceback.clear_frames(item.__traceback__)
