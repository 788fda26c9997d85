"""Executables of calls of torch: they call t2j's real handler for CUDA, as XLA does on a GPU."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import torch
from t2j_core import torch2jax
from t2j_core._lowering.native import _native
from t2j_core._run.torch_fn import TorchFn

from . import xla_ffi as ffi

STREAM, OTHER = 0xABC0, 0xDEF0  # streams of XLA: any addresses, because the fake runtime does not look behind them


class XlaError(Exception):
    """The error that a handler returned."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class _Context:
    """What XLA knows of one call."""

    executable: Executable
    stream: int
    device: int
    run_id: int
    error: XlaError | None = None


_contexts: dict[int, _Context] = {}
_numbers = itertools.count(1)
_errors: dict[int, XlaError] = {}
_deleters: list[Callable[[int], None]] = []


def _entry(structure: Any) -> Callable[[Callable[[Any], int | None]], Any]:
    """A function of XLA's table, which takes a structure."""

    def made(function: Callable[[Any], int | None]) -> Any:
        return ffi.Handler(lambda address: function(structure.from_address(address)))

    return made


@_entry(ffi.ErrorCreate)
def _error_create(args: Any) -> int:
    number = next(_numbers)
    _errors[number] = XlaError(args.code, args.message.decode())
    return number


@_entry(ffi.StreamGet)
def _stream_get(args: Any) -> None:
    args.stream = _contexts[args.context].stream


@_entry(ffi.RunIdGet)
def _run_id_get(args: Any) -> None:
    args.run_id = _contexts[args.context].run_id


@_entry(ffi.DeviceOrdinalGet)
def _device_ordinal_get(args: Any) -> None:
    args.ordinal = _contexts[args.context].device


@_entry(ffi.TypeRegister)
def _type_register(args: Any) -> None:
    args.type_id.contents.value = 1
    _deleters.append(args.info.contents.deleter)


@_entry(ffi.StateAccess)
def _state_set(args: Any) -> None:
    _contexts[args.context].executable.state = args.state


@_entry(ffi.StateAccess)
def _state_get(args: Any) -> None:
    args.state = _contexts[args.context].executable.state


_api = ffi.Api(
    ffi.Version(0, 3),
    error_create=_error_create,
    stream_get=_stream_get,
    type_register=_type_register,
    state_set=_state_set,
    state_get=_state_get,
    run_id_get=_run_id_get,
    device_ordinal_get=_device_ordinal_get,
)

_pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_in.restype, _pointer_in.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_handlers = {name: _pointer_in(capsule, None) for name, capsule in _native.handlers().items()}
_STAGES = {ffi.INSTANTIATE: "instantiate", ffi.INITIALIZE: "initialize", ffi.EXECUTE: "cuda"}
EXECUTE: int = _handlers["cuda"]


def metadata_of(name: str) -> Any:
    """What a handler answers to XLA's query."""
    metadata = ffi.Metadata()
    extension = ffi.MetadataExtension(
        ctypes.sizeof(ffi.MetadataExtension), ffi.METADATA, None, ctypes.addressof(metadata)
    )
    structure = ffi.CallFrame(ctypes.addressof(_api), None, ffi.EXECUTE)
    structure.extension = ctypes.addressof(extension)
    assert ffi.Handler(_handlers[name])(ctypes.addressof(structure)) is None
    return metadata


@dataclass
class Frame:
    """A call that XLA is about to make."""

    context: int
    structure: Any
    memory: list[Any] = field(repr=False)  # what the structure points to

    @property
    def address(self) -> int:
        """Where the structure is."""
        return ctypes.addressof(self.structure)

    def finish(self, error: int | None) -> None:
        """Raise what the handler returned."""
        del _contexts[self.context]
        if error:
            raise _errors.pop(error)


class Executable:
    """A compiled call of a torch function. XLA owns its state, until it is closed."""

    def __init__(self, fn: TorchFn, *, is_captured: bool = False, **attributes: int) -> None:
        self.fn = fn
        self.is_captured = is_captured
        """Whether XLA may capture it."""
        self.state = 0
        self.attributes = {"id": fn.id, **attributes}
        self.run(self.frame((), (), stage=ffi.INSTANTIATE))

    def run(self, frame: Frame) -> None:
        """Call the handler for the stage of a frame."""
        name = _STAGES[frame.structure.stage] + (" captured" if self.is_captured else "")
        frame.finish(ffi.Handler(_handlers[name])(frame.address))

    def initialize(self, operands: Sequence[np.ndarray], *, stream: int = STREAM, device: int = 0) -> None:
        """Do what XLA does before each execution of a call that it may capture."""
        self.run(self.frame(operands, self.results(), stage=ffi.INITIALIZE, stream=stream, device=device))

    def results(self) -> list[np.ndarray]:
        """Memory for results."""
        return [device_memory(np.zeros(leaf.shape, leaf.dtype)) for leaf in self.fn.signature.outputs.leaves]

    def close(self) -> None:
        """Delete the state, as XLA does with an executable that nobody needs."""
        state, self.state = self.state, 0
        _deleters[0](state)

    def __call__(
        self, operands: Sequence[np.ndarray], *, stream: int = STREAM, device: int = 0, run_id: int = 0
    ) -> list[np.ndarray]:
        """Call the handler with memory of the operands and of new results."""
        results = self.results()
        for operand, result in self.fn.aliases.items():
            results[result] = operands[operand]
        self.run(self.frame(operands, results, stream=stream, device=device, run_id=run_id))
        return results

    def frame(
        self,
        operands: Sequence[np.ndarray],
        results: Sequence[np.ndarray],
        *,
        stage: int = ffi.EXECUTE,
        stream: int = STREAM,
        device: int = 0,
        run_id: int = 0,
    ) -> Frame:
        """The frame of a call."""
        context, memory = next(_numbers), [operands, results]
        _contexts[context] = _Context(self, stream, device, run_id)
        buffers = [_buffers(arrays, memory) for arrays in (operands, results)]
        attributes = _attributes(self.attributes, self.fn.serialised, memory)
        structure = ffi.CallFrame(ctypes.addressof(_api), context, stage, *buffers, attributes, None)
        return Frame(context, structure, memory)

    @property
    def deleter(self) -> int:
        """The address of the function that deletes its state, as XLA does with an executable that nobody needs."""
        return ctypes.cast(_deleters[0], ctypes.c_void_p).value or 0


def _array(kind: Any, items: Sequence[Any], memory: list[Any]) -> int:
    """The address of a C array."""
    memory += [items, (kind * max(len(items), 1))(*items)]
    return ctypes.addressof(memory[-1])


def _addresses(items: Sequence[Any], memory: list[Any]) -> int:
    """The address of an array of pointers."""
    memory.append(items)
    return _array(ctypes.c_void_p, [ctypes.addressof(item) for item in items], memory)


def _buffers(arrays: Sequence[np.ndarray], memory: list[Any]) -> Any:
    buffers = [
        ffi.Buffer(
            ffi.DTYPES[a.dtype.name], a.ctypes.data if a.size else None, a.ndim, _array(ffi.I64, a.shape, memory)
        )
        for a in arrays
    ]
    types = _array(ffi.I32, [1] * len(buffers), memory)
    return ffi.Buffers(len(buffers), types, _addresses(buffers, memory))


def _attributes(numbers: Mapping[str, int], call: str, memory: list[Any]) -> Any:
    names = [ffi.Span(name.encode(), len(name)) for name in (*numbers, "call")]
    integers = [ctypes.c_int64(value) for value in numbers.values()]
    scalars = [ffi.Scalar(ffi.S64, ctypes.addressof(integer)) for integer in integers]
    memory.append(integers)
    types = _array(ffi.I32, [*[ffi.SCALAR] * len(scalars), ffi.STRING], memory)
    values = [*scalars, ffi.Span(call.encode(), len(call))]
    return ffi.Attrs(len(names), types, _addresses(names, memory), _addresses(values, memory))


# --- functions without JAX around them -------------------------------------------------------------------------------


def device_memory(array: np.ndarray, alignment: int = 256) -> np.ndarray:
    """A copy of an array, aligned as XLA's allocator aligns its memory."""
    block = np.zeros(array.nbytes + alignment, np.uint8)
    begin = -block.ctypes.data % alignment
    out = block[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def copy(t: torch.Tensor) -> tuple[torch.Tensor]:
    """A function that copies its argument."""
    return (t.clone(),)


def ones(*shape: int, dtype: str = "float32") -> np.ndarray:
    """Memory of a device, filled with ones."""
    return device_memory(np.ones(shape, dtype))


def executable(
    run: Callable[..., tuple[torch.Tensor, ...]],
    operands: Sequence[np.ndarray],
    results: Sequence[np.ndarray],
    *,
    outputs: str = "copy",
    arguments: str = "auto",
    is_captured: bool = False,
) -> Executable:
    """A call of a function of one tensor per operand, with operands and results like those given."""
    given, returned = (tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays) for arrays in (operands, results))
    traced = jax.make_jaxpr(torch2jax(run, output_shapes=returned, outputs=outputs, arguments=arguments))(*given)
    (equation,) = traced.eqns
    return Executable(equation.params["fn"], is_captured=is_captured)
