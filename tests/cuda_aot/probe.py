"""A handler in Python that does nothing. It notes the plugin's table of functions, and has the traits it is given."""

from __future__ import annotations

import ctypes

import jax
from t2j_core.testing import abi_layout

LAYOUT = abi_layout()
HANDLER = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
CAN_BE_RECORDED = 1  # the trait of a handler that XLA may call while it records a command buffer


def pointer(address: int, field: str) -> ctypes.c_void_p:
    return ctypes.c_void_p.from_address(address + LAYOUT[field])


class Probe:
    """Registered under `name` at once, for good."""

    def __init__(self, name: str, traits: int = 0) -> None:
        self.table = 0
        self._traits = traits
        self._function = HANDLER(self._handle)
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(self._function), platform="CUDA")

    def _handle(self, frame: int) -> None:
        self.table = pointer(frame, "ffi::CallFrame.api").value or 0
        extension = ctypes.c_void_p.from_address(frame + ctypes.sizeof(ctypes.c_size_t)).value or 0
        metadata = pointer(extension, "ffi::MetadataExtension.metadata").value or 0
        size = LAYOUT["ffi::Version"]
        ctypes.memmove(metadata + LAYOUT["ffi::Metadata.version"], self.table + LAYOUT["ffi::Api.version"], size)
        ctypes.c_uint32.from_address(metadata + LAYOUT["ffi::Metadata.traits"]).value = self._traits
