"""XLA's side of a call: the structures of its FFI, as `packages/t2j-core/native/xla_ffi.h` declares them, in ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

Size, Pointer, I32, I64, Text = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_char_p
Handler = ctypes.CFUNCTYPE(Pointer, Pointer)  # (a structure) -> an error, or null
INSTANTIATE, INITIALIZE, EXECUTE = 0, 2, 3
METADATA = 1
SCALAR, STRING = 3, 4
S64 = 5
DTYPES = {"bool": 1, "int8": 2, "int32": 4, "int64": 5, "uint32": 8, "float16": 10, "float32": 11, "float64": 12}

HEAD = ("struct_size", Size), ("extension", Pointer)


class Struct(ctypes.Structure):
    """A structure that begins with its size."""

    def __init__(self, *fields: Any, **named: Any) -> None:
        super().__init__(ctypes.sizeof(type(self)), None, *fields, **named)


def struct(name: str, *fields: tuple[str, Any]) -> Any:
    """A class of structures."""
    return type(name, (Struct,), {"_fields_": [*HEAD, *fields]})


class Span(ctypes.Structure):
    """Text."""

    _fields_ = (("ptr", Text), ("len", Size))


class Scalar(ctypes.Structure):
    """A number."""

    _fields_ = (("dtype", I32), ("value", Pointer))


class TypeId(ctypes.Structure):
    """The number of a type of states."""

    _fields_ = (("value", I64),)


Version = struct("Version", ("major", I32), ("minor", I32))
ErrorCreate = struct("ErrorCreate", ("message", Text), ("code", I32))
Buffer = struct("Buffer", ("dtype", I32), ("data", Pointer), ("rank", I64), ("dims", Pointer))
Buffers = struct("Buffers", ("size", I64), ("types", Pointer), ("buffers", Pointer))
Attrs = struct("Attrs", ("size", I64), ("types", Pointer), ("names", Pointer), ("values", Pointer))
CallFrame = struct(
    "CallFrame",
    ("api", Pointer),
    ("context", Pointer),
    ("stage", I32),
    ("args", Buffers),
    ("rets", Buffers),
    ("attrs", Attrs),
    ("future", Pointer),
)
TypeInfo = struct("TypeInfo", ("deleter", ctypes.CFUNCTYPE(None, Pointer)))
TypeRegister = struct(
    "TypeRegister", ("name", Span), ("type_id", ctypes.POINTER(TypeId)), ("info", ctypes.POINTER(TypeInfo))
)
StateAccess = struct("StateAccess", ("context", Pointer), ("stage", I32), ("type_id", Pointer), ("state", Pointer))
StreamGet = struct("StreamGet", ("context", Pointer), ("stream", Pointer))
RunIdGet = struct("RunIdGet", ("context", Pointer), ("run_id", I64))
DeviceOrdinalGet = struct("DeviceOrdinalGet", ("context", Pointer), ("ordinal", I32))


class Metadata(ctypes.Structure):
    """What a handler says of itself."""

    _fields_ = (("struct_size", Size), ("version", Version), ("traits", ctypes.c_uint32), ("state_type_id", TypeId))




class MetadataExtension(ctypes.Structure):
    """XLA's query for metadata, which a frame points to."""

    _fields_ = (("struct_size", Size), ("type", I32), ("next", Pointer), ("metadata", Pointer))


_ENTRIES = (
    *("internal_api", "error_create", "error_get_message", "error_destroy", "handler_register", "stream_get"),
    *("type_register", "context_get", "state_set", "state_get", "memory_allocate", "memory_free", "pool_schedule"),
    *("pool_num_threads", "future_create", "future_set_available", "future_set_error", "run_id_get"),
    "device_ordinal_get",
)
Api = struct("Api", ("version", Version), *((name, Handler) for name in _ENTRIES))
