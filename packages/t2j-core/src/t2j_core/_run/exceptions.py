"""The exceptions of a torch function, as XLA takes them: a status code and a text."""

from __future__ import annotations

import enum
import logging
import math
import time
import traceback

import torch

from .._base.bounded import remember
from .._base.frames import chain_of, hide_own_frames
from .._base.jax_inside import as_jax_inside
from .._base.text import utf8
from .._infer.notes import (
    note_cuda_graphs,
    note_jax_dtypes,
    note_missing_width,
    note_mixed_dtypes,
    note_numbers,
    note_written_leaf,
)
from .._signature.signature import Signature
from .originals import keep, tag

logger = logging.getLogger("t2j_core")


_on_several_devices: dict[str, None] = {}  # the names of functions in programs for several devices
_logged: dict[str, float] = {}
_LIMIT = 8000  # nested calls embed each other's text; without a limit it doubles with every level


class _Status(enum.IntEnum):
    """XLA's status codes (`XLA_FFI_Error_Code` in xla/ffi/api/c_api.h)."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    RESOURCE_EXHAUSTED = 8
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13


_STATUS_OF: dict[type[BaseException], _Status] = {
    KeyboardInterrupt: _Status.CANCELLED,
    NotImplementedError: _Status.UNIMPLEMENTED,
    MemoryError: _Status.RESOURCE_EXHAUSTED,
    torch.OutOfMemoryError: _Status.RESOURCE_EXHAUSTED,
    IndexError: _Status.OUT_OF_RANGE,
    ValueError: _Status.INVALID_ARGUMENT,
    TypeError: _Status.INVALID_ARGUMENT,
}
"""The first class that an exception is an instance of gives its status; INTERNAL if there is none."""


def note_several_devices(name: str) -> None:
    """Note that a function is in a program for several devices, so that its exceptions are also logged."""
    remember(_on_several_devices, name, None)


def report(signature: Signature | None, error: BaseException, depth: int = 1) -> tuple[int, str]:
    """Keep an exception for `last_error`, and return XLA's status code and a message.

    `depth` is how many calls of this thread were nested in each other when it was raised.
    """
    if signature is not None:
        error = as_jax_inside(signature.name, error) or error
        note_numbers(error, signature.call_tree)
        note_mixed_dtypes(error, signature.call_tree, signature.operands)
    note_missing_width(error)
    note_jax_dtypes(error)
    note_written_leaf(error)
    note_cuda_graphs(error)
    _clear_frames(error)
    hide_own_frames(error)
    text, summary = _texts(error)
    number = keep(error, depth)
    if len(text) > _LIMIT:
        text = f"{text[: _LIMIT // 2]}\n  [...]\n{text[-_LIMIT // 2 :]}"
    name = signature.name if signature else "a torch function"
    if name in _on_several_devices:
        _log(name, text)
    status = next((status for kind, status in _STATUS_OF.items() if isinstance(error, kind)), _Status.INTERNAL)
    message = f"{tag(number)} {summary[:2000]}\n\nRaised in the torch function {name}:\n{text}"
    return status, _as_c_string(message)


def _texts(error: BaseException) -> tuple[str, str]:
    """An exception as text, with its traceback and without."""
    try:
        text = "".join(traceback.format_exception(error))
        return text, "".join(traceback.format_exception_only(error)).strip()
    except Exception:  # its class is the user's, and may do anything
        return type(error).__name__, type(error).__name__


def _as_c_string(text: str) -> str:
    """`text` without what C strings and UTF-8 cannot have: zeros and lone surrogates become escapes."""
    return utf8(text).replace("\0", "\\0")


def _log(name: str, text: str) -> None:
    """Log an exception at once: in a collective the other devices wait for this one, until XLA ends the process."""
    now = time.monotonic()
    if now - _logged.get(name, -math.inf) > 1:  # all devices may raise at the same time
        _logged.pop(name, None)
        remember(_logged, name, now)
        logger.error("The torch function %s raised on one of several devices:\n%s", name, text)


def _clear_frames(error: BaseException) -> None:
    """Clear the frames of an exception and of those behind it, which keep lent tensors alive."""
    for item in chain_of(error):
        traceback.clear_frames(item.__traceback__)
