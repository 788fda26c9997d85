"""What happens when a torch function misbehaves: the hooks that the native call path enters then."""

from __future__ import annotations

import collections
import contextlib
import gc
import itertools
import logging
import math
import re
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import torch

from . import _compat
from ._advice import note_numbers
from ._config import config
from ._dtypes import aval_text, canonical, dtype_t2j, note_missing_width
from ._errors import (
    DataDependentShapeError,
    DTypeError,
    OutputError,
    TensorEscapeError,
    TensorMutationError,
    describe,
)
from ._frames import hide_own_frames
from ._jax_inside import as_jax_inside
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
    if value.is_meta or not _has_storage(value):
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
            describe(what, expected=expected, got=f"{got} for these values", remedy=fixed_shapes(signature.operands))
        )
    remedy = "Return the same shapes and dtypes for every input of a signature."
    return OutputError(_wrong(signature, path, str(leaf), got, remedy))


def _wrong(signature: Signature, path: str, expected: str, got: str, remedy: str) -> str:
    return describe(f"{signature.name} returned a wrong {path}.", expected=expected, got=got, remedy=remedy)


def _kind(value: torch.Tensor) -> str:
    return "meta tensor" if value.is_meta else type(value).__name__


def _has_storage(value: torch.Tensor) -> bool:
    try:
        return value.numel() == 0 or value.data_ptr() != 0
    except Exception:  # wrapper subclasses and fake tensors
        return False


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


# --- operands -----------------------------------------------------------------------------------------------------


def raise_mutated(signature: Signature, index: int) -> None:
    """Raise for a borrowed operand that was written into."""
    path = signature.operand_paths()[index]
    raise TensorMutationError(
        describe(
            f"{signature.name} changed {path} in place, so the JAX array that was passed HAS BEEN CHANGED.",
            expected=f"{path} {signature.operands[index]} left as it was",
            got="an in-place operation on it (found by the tensor's version counter)",
            remedy="Work on `tensor.clone()`, or list the argument in `mutable_argnums` and return it.",
        )
    )


def raise_escaped(signature: Signature, ranges: list[tuple[int, int]], raising: bool) -> None:
    """Move tensors that outlive their call to memory of their own, and raise."""
    moved = _make_safe(ranges)
    logger.debug("%s: moved %d escaped storages", signature.name, moved)
    if not raising:
        return
    raise TensorEscapeError(
        describe(
            f"{signature.name} keeps one of its arguments, or a view of one, beyond the call. "
            "Its memory belongs to XLA, which may reuse or free it.",
            expected="every tensor over an argument gone when the function returns",
            got="a tensor, view, NumPy array, autograd graph or stored exception that still refers to one",
            remedy="Store `tensor.clone()` instead (with `.detach()` if an autograd graph would keep it).",
        )
    )


def results_kept(target: Any, ranges: list[tuple[int, int]], movable: bool) -> None:
    """A function with redirected results keeps one of them, which is its right: give it memory of its own."""
    target.give_up()
    if movable:
        _make_safe(ranges)
        return
    raise TensorEscapeError(
        describe(
            "A function keeps a result that was written into XLA's memory, which may be reused or freed.",
            expected='results that are not kept, or `outputs="copy"`',
            remedy='Wrap the function with `outputs="copy"`.',
        )
    )


_held: collections.deque[Any] = collections.deque(maxlen=16)


def hold(arrays: Any) -> None:
    """Keep the arrays of an eager call with an escape alive for a while: NumPy views of them cannot be moved."""
    _held.append(arrays)


def _make_safe(ranges: list[tuple[int, int]]) -> int:
    """Give the CPU storages that were lent memory of their own; every view of them follows.

    Where something else of the user's lies over the same memory (weights that JAX shares), it is not told which storage
    was lent. Both stay then: the other one keeps the memory alive.
    """
    lent = dict(ranges)
    candidates: dict[int, dict[int, Any]] = {}
    for storage in _living_storages():
        with contextlib.suppress(Exception):  # storages without data
            if storage.device.type == "cpu" and lent.get(pointer := storage.data_ptr()) == storage.nbytes():
                candidates.setdefault(pointer, {})[storage._cdata] = storage
    alone = [storage for found in candidates.values() if len(found) == 1 for storage in found.values()]
    for storage in alone:
        storage.share_memory_()
    return len(alone)


def _living_storages() -> Iterator[Any]:
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.UntypedStorage):
            if _compat.storage_uses(thing) > 0:
                yield thing
        elif issubclass(type(thing), torch.Tensor):
            for tensor in (thing, *_saved_tensors(thing)):
                with contextlib.suppress(Exception):  # tensors without storage
                    yield tensor.untyped_storage()


def _saved_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """What the autograd graph behind `tensor` saved for its backward."""
    found: list[torch.Tensor] = []
    queue, seen = [tensor.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for attribute in dir(node):
            if attribute.startswith("_saved_"):
                try:
                    value = getattr(node, attribute)
                except Exception:  # already freed by a backward, or a hook refuses
                    continue
                found += [
                    v for v in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(v, torch.Tensor)
                ]
        queue += [edge for edge, _ in node.next_functions]
    return found


# --- exceptions ---------------------------------------------------------------------------------------------------

_kept: collections.OrderedDict[int, BaseException] = collections.OrderedDict()
_newest: BaseException | None = None
_numbers = itertools.count(1)

run_on_several_devices: set[str] = set()
"""The names of functions in programs for several devices."""
_logged: dict[str, float] = {}
_TAG = re.compile(r"\[t2j error (\d+)\]")
_LIMIT = 8000  # nested calls embed each other's text; without a limit it doubles with every level

_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (KeyboardInterrupt, 1),
    (NotImplementedError, 12),
    (MemoryError, 8),
    (IndexError, 11),
    ((ValueError), 3),
    ((TypeError), 3),
)


def report(signature: Signature | None, error: BaseException) -> tuple[int, str]:
    """Keep an exception for `last_error` and word it for XLA: (status code, message)."""
    number = next(_numbers)
    if signature is not None:
        error = as_jax_inside(signature.name, error) or error
        note_numbers(error, signature.key)
    note_missing_width(error)
    _clear_frames(error)
    hide_own_frames(error)
    text = "".join(traceback.format_exception(error))
    summary = "".join(traceback.format_exception_only(error)).strip()
    global _newest
    _kept[number] = _newest = error
    while len(_kept) > config.kept_errors:
        _kept.popitem(last=False)
    if len(text) > _LIMIT:
        text = f"{text[: _LIMIT // 2]}\n  [...]\n{text[-_LIMIT // 2 :]}"
    name = signature.name if signature else "a torch function"
    if name in run_on_several_devices:
        _log(name, text)
    code = next((code for kind, code in _CODES if isinstance(error, kind)), 13)
    message = f"[t2j error {number}] {summary[:2000]}\n\nRaised in the torch function {name}:\n{text}"
    return code, message.encode("utf-8", "backslashreplace").replace(b"\0", b"\\0").decode()


def _log(name: str, text: str) -> None:
    """Show an exception now: in a collective the other devices wait for this one, until XLA ends the process."""
    now = time.monotonic()
    if now - _logged.get(name, -math.inf) > 1:  # all devices may raise at once
        _logged[name] = now
        logger.error("The torch function %s raised on one of several devices:\n%s", name, text)


def _clear_frames(error: BaseException) -> None:
    """Frames keep the argument tensors, and with them XLA's memory, alive. Those of the caller are left alone."""
    seen = {id(sys.exception())}
    queue: list[BaseException | None] = [error]
    while queue:
        item = queue.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        traceback.clear_frames(item.__traceback__)
        queue += [item.__cause__, item.__context__]
        if isinstance(item, BaseExceptionGroup):
            queue += item.exceptions


def original_of(error: BaseException) -> BaseException | None:
    """The exception of the torch function behind an error of XLA, if it is still kept. It is not kept longer."""
    # XLA's text begins with a status. The first tag is ours; what follows may quote older ones.
    found = _TAG.search(str(error)) if re.match(r"[A-Z_]+: ", str(error)) else None
    return _kept.pop(int(found[1]), None) if found else None


def last_error() -> BaseException | None:
    """The newest exception that a torch function raised, with its type and traceback; None if there was none.

    Under your own `jax.jit` XLA turns every exception into a `JaxRuntimeError`; this has the original.

    >>> last_error() is None or isinstance(last_error(), BaseException)
    True
    """
    return _newest
