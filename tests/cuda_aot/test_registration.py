"""The CUDA plugin brings its own XLA, which takes the handlers and builds the state of calls as jaxlib's does."""

from __future__ import annotations

import ctypes

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from h100 import aval, compiled
from probe import CAN_BE_RECORDED, HANDLER, LAYOUT, Probe, pointer
from t2j_core import environment_info, torch2jax
from t2j_core._lowering import native
from t2j_core.testing import collect, counters

NEWEST_LAYOUT = 3  # of the FFI: what newer versions report too, because they only append to it


def plus_one(x):
    return x + 1


def twice(x):
    return x * 2


def test_xla_builds_a_site_for_each_call_and_frees_it(sites):
    f, g = torch2jax(plus_one), torch2jax(twice)
    before = counters()["live_sites"]
    executable = compiled(lambda x: g(jnp.sin(f(f(x)))), aval(8))
    assert [name for name, _ in sites] == ["plus_one", "plus_one", "twice"]
    # The first sites live while the last one is built: XLA has taken them as the states of their calls.
    assert [alive - before for _, alive in sites] == [0, 1, 2]
    del executable
    collect()
    assert counters()["live_sites"] == before


def test_an_exception_of_a_site_reaches_the_compiler():
    unknown = lambda x: jax.ffi.ffi_call("t2j_torch_call", x)(x, id=np.int64(10**9), call="")
    with pytest.raises(jax.errors.JaxRuntimeError, match="torch function number 1000000000"):
        compiled(lambda x: unknown(x), aval(8))
    compiled(torch2jax(plus_one), aval(8))


# --- the metadata query ----------------------------------------------------------------------------------------------

METADATA_QUERY = 1  # type of the extension of a call frame


def version(address: int) -> list[int]:
    """Major and minor of a version of the FFI."""
    return [ctypes.c_int32.from_address(address + LAYOUT[f"ffi::Version.{part}"]).value for part in ("major", "minor")]


@pytest.fixture(scope="module")
def table() -> int:
    """The address of the plugin's table of functions."""
    aval(1)  # loads the plugin
    probe = Probe("t2j_probe")
    assert probe.table
    return probe.table


class Metadata:
    """What a handler of t2j says of itself to the XLA with this table."""

    def __init__(self, handler: object, table: int) -> None:
        metadata, extension, frame = (
            ctypes.create_string_buffer(LAYOUT[f"ffi::{name}"])
            for name in ("Metadata", "MetadataExtension", "CallFrame")
        )
        self._metadata = metadata
        at = ctypes.addressof
        ctypes.c_int32.from_address(at(extension) + LAYOUT["ffi::Extension.type"]).value = METADATA_QUERY
        pointer(at(extension), "ffi::MetadataExtension.metadata").value = at(metadata)
        ctypes.c_void_p.from_address(at(frame) + ctypes.sizeof(ctypes.c_size_t)).value = at(extension)
        pointer(at(frame), "ffi::CallFrame.api").value = table
        address = ctypes.pythonapi.PyCapsule_GetPointer
        address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        assert HANDLER(address(handler, None))(at(frame)) is None  # no error

    def _number(self, kind: type, field: str) -> int:
        return kind.from_buffer(self._metadata, LAYOUT[f"ffi::Metadata.{field}"]).value

    @property
    def version(self) -> list[int]:
        return version(ctypes.addressof(self._metadata) + LAYOUT["ffi::Metadata.version"])

    @property
    def traits(self) -> int:
        return self._number(ctypes.c_uint32, "traits")

    @property
    def state_type(self) -> int:
        return self._number(ctypes.c_int64, "state_type_id")


def test_the_plugin_has_the_version_of_the_ffi_that_jaxlib_has(table):
    found = version(table + LAYOUT["ffi::Api.version"])
    assert ".".join(map(str, found)) == environment_info()["xla_ffi"]


def test_handlers_say_their_version_and_the_type_of_their_state(table):
    of = {name: Metadata(handler, table) for name, handler in native._handlers.items()}
    known = [0, min(version(table + LAYOUT["ffi::Api.version"])[1], NEWEST_LAYOUT)]
    assert {tuple(metadata.version) for metadata in of.values()} == {tuple(known)}
    assert {name for name, metadata in of.items() if metadata.state_type} == {"instantiate", "instantiate captured"}
    assert of["cuda"].traits == 0  # XLA does not record these calls in command buffers
    assert of["cuda captured"].traits == CAN_BE_RECORDED
