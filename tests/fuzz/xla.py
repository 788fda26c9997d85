"""A stand-in for XLA that calls t2j's handlers for the CPU with any call frame."""

from __future__ import annotations

import ctypes
import functools
import itertools
from typing import Any

from cuda_fake import xla_ffi as ffi
from t2j_core._lowering.native import _native

_pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_in.restype, _pointer_in.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
HANDLERS = {name: ffi.Handler(_pointer_in(capsule, None)) for name, capsule in _native.handlers().items()}

_numbers = itertools.count(1)
_errors: dict[int, str] = {}
states: dict[int, int] = {}
"""What a handler has stored, by the context of the frame."""
_deleters: list[Any] = []


def _entry(structure: Any, function: Any) -> Any:
    """A function of XLA's table, which takes a structure."""
    return ffi.Handler(lambda address: function(structure.from_address(address)))


def _error_create(args: Any) -> int:
    number = next(_numbers)
    _errors[number] = args.message.decode()
    return number


def _type_register(args: Any) -> None:
    args.type_id.contents.value = 1
    if args.struct_size >= ctypes.sizeof(ffi.TypeRegister):
        _deleters.append(args.info.contents.deleter)


def _state_set(args: Any) -> None:
    states[args.context] = args.state


def _state_get(args: Any) -> None:
    args.state = states.get(args.context)


@functools.cache
def api(minor: int) -> Any:
    """The table of a version of XLA's interface, from 0.3 on. One that t2j does not know has no state."""
    return ffi.Api(
        ffi.Version(0, minor),
        error_create=_entry(ffi.ErrorCreate, _error_create),
        type_register=_entry(ffi.TypeRegister, _type_register),
        state_set=_entry(ffi.StateAccess, _state_set),
        state_get=_entry(ffi.StateAccess, _state_get),
    )


def call(handler: str, frame: Any) -> str | None:
    """Call a handler; the text of its error, or None."""
    number = HANDLERS[handler](ctypes.addressof(frame))
    return None if number is None else _errors.pop(number)


def delete(context: int) -> None:
    """Delete what was stored for a context, as XLA does with an executable that nobody needs."""
    state = states.pop(context, None)
    if state:
        _deleters[0](state)
