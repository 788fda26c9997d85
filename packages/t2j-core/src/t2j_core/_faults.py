"""What happens when a torch function misbehaves: the hooks that the native call path enters then."""

from __future__ import annotations

import collections
import logging
import math
import time
import traceback
from typing import Any

import torch

from ._advice import note_cuda_graphs, note_jax_dtypes, note_mixed_dtypes, note_numbers
from ._bounded import remember
from ._convert import has_data
from ._dtypes import aval_text, canonical, dtype_t2j, note_missing_width
from ._errors import DataDependentShapeError, DTypeError, OutputError, describe
from ._frames import hide_own_frames, with_those_behind
from ._jax_inside import as_jax_inside
from ._originals import keep, tag
from ._signature import Leaf, Signature, fixed_shapes, named_avals, same_tree

logger = logging.getLogger("t2j_core")

_DEVICE_TYPES = {1: "cpu", 2: "cuda", 10: "cuda"}  # DLPack's numbers; torch calls ROCm "cuda"

# --- results that are not plain ------------------------------------------------------------------------------------


def check_results(signature: Signature, answer: object) -> None:
    """Raise for an answer whose tree is not the one declared or inferred."""
    n = len(signature.outputs.leaves)
    got = f"{len(answer)} tensors" if isinstance(answer, (tuple, list)) else f"a {type(answer).__name__}"
    raise OutputError(
        describe(
            f"{signature.name} did not return what it should.",
            expected="one tensor" if signature.outputs.single else f"{n} tensors in the declared tree",
            got=got,
            remedy=same_tree(signature.outputs),
        )
    )


def check_output(signature: Signature, index: int, value: Any, device_type: int, device_id: int) -> torch.Tensor:
    """Raise for an output that cannot be right; answer one that torch can copy into the result buffer."""
    leaf = signature.outputs.leaves[index]
    path = signature.outputs.paths()[index]
    where = _DEVICE_TYPES[device_type]
    if not isinstance(value, torch.Tensor):
        raise OutputError(
            _wrong(signature, path, f"{leaf} as a torch.Tensor", type(value).__name__, "Return a tensor.")
        )
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"{value.layout}"
        raise OutputError(_wrong(signature, path, f"{leaf}, dense", kind, "Return one dense tensor."))
    if value.is_quantized:
        raise OutputError(_wrong(signature, path, str(leaf), f"{value.dtype}", "Return `tensor.dequantize()`."))
    if value.is_meta or not has_data(value):
        raise OutputError(
            _wrong(signature, path, str(leaf), f"a {_kind(value)} without data", "Return a tensor that holds values.")
        )
    if value.device.type != where or (where != "cpu" and value.device.index != device_id):
        expected = where if where == "cpu" else f"{where}:{device_id}"
        raise OutputError(
            _wrong(
                signature,
                path,
                f"{leaf} on {expected}",
                f"a tensor on {value.device}",
                f"Return `tensor.to('{expected}')`.",
            )
        )
    if tuple(value.shape) != leaf.shape or not _stores_as(value.dtype, leaf):
        raise _another_aval(signature, path, leaf, value)
    return value.as_subclass(torch.Tensor)


def _another_aval(signature: Signature, path: str, leaf: Leaf, value: torch.Tensor) -> Exception:
    """The error for an output of another shape or dtype than the signature has."""
    got, is_declared = _short(value), signature.outputs.is_declared
    if is_declared:
        remedy = "Correct `output_shapes`, or the shape and dtype the function returns."
        return OutputError(_wrong(signature, path, str(leaf), got, remedy))
    if is_declared is False and tuple(value.shape) != leaf.shape:
        what = f"The shape of {path} of {signature.name} depends on the values of its inputs"
        what = f"{what} ({named_avals(signature.key, signature.operands)})."
        expected = f"{leaf}, as it was {signature.outputs.origin}"
        return DataDependentShapeError(
            describe(
                what,
                expected=expected,
                got=f"{got} for these values",
                remedy=fixed_shapes(signature.operand_paths(), signature.operands),
            )
        )
    remedy = "Return the same shapes and dtypes for every input of a signature."
    return OutputError(_wrong(signature, path, str(leaf), got, remedy))


def _wrong(signature: Signature, path: str, expected: str, got: str, remedy: str) -> str:
    return describe(f"{signature.name} returned a wrong {path}.", expected=expected, got=got, remedy=remedy)


def _kind(value: torch.Tensor) -> str:
    return "meta tensor" if value.is_meta else type(value).__name__


def _stores_as(dtype: torch.dtype, leaf: Leaf) -> bool:
    try:
        return canonical(dtype_t2j(dtype)) == leaf.dtype
    except DTypeError:
        return False


def _short(value: torch.Tensor) -> str:
    try:
        return aval_text(tuple(value.shape), dtype_t2j(value.dtype))
    except DTypeError:
        return f"{value.dtype}{list(value.shape)}"


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
        note_numbers(error, signature.key)
        note_mixed_dtypes(error, signature.key, signature.operands)
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
    for item in with_those_behind(error):
        traceback.clear_frames(item.__traceback__)
