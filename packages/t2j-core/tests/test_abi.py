"""The layouts that the extension declares equal those in the headers that the installed jaxlib and torch ship."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import jaxlib
import pytest
import torch
from t2j_core.testing import abi_layout

FFI_HEADER = Path(jaxlib.__file__).parent / "include" / "xla" / "ffi" / "api" / "c_api.h"
DLPACK_HEADER = Path(torch.__file__).parent / "include" / "ATen" / "dlpack.h"
COMPILER = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)

# Our structs and fields -> XLA's. `Buffers` is the struct of both the arguments and the results.
XLA = {
    # FFI 0.5 calls it InternalExtension
    "ffi::Extension": (("XLA_FFI_Extension_Base", "XLA_FFI_InternalExtension"), {"type": "type", "next": "next"}),
    "ffi::Version": ("XLA_FFI_Api_Version", {"major": "major_version", "minor": "minor_version"}),
    "ffi::ErrorCreate": ("XLA_FFI_Error_Create_Args", {"message": "message", "code": "errc"}),
    "ffi::Span": ("XLA_FFI_ByteSpan", {"len": "len"}),
    "ffi::Scalar": ("XLA_FFI_Scalar", {"value": "value"}),
    "ffi::Buffer": ("XLA_FFI_Buffer", {"dtype": "dtype", "data": "data", "rank": "rank", "dims": "dims"}),
    "ffi::Buffers": ("XLA_FFI_Args", {"size": "size", "types": "types", "buffers": "args"}),
    "ffi::Buffers (results)": ("XLA_FFI_Rets", {"size": "size", "types": "types", "buffers": "rets"}),
    "ffi::Attrs": ("XLA_FFI_Attrs", {"size": "size", "types": "types", "names": "names", "values": "attrs"}),
    "ffi::CallFrame": (
        "XLA_FFI_CallFrame",
        {
            "api": "api",
            "context": "ctx",
            "stage": "stage",
            "args": "args",
            "rets": "rets",
            "attrs": "attrs",
            "future": "future",
        },
    ),
    "ffi::TypeId": ("XLA_FFI_TypeId", {}),
    "ffi::TypeInfo": ("XLA_FFI_TypeInfo", {"deleter": "deleter"}),
    "ffi::TypeRegister": (
        "XLA_FFI_Type_Register_Args",
        {"name": "name", "type_id": "type_id", "info": "type_info"},
    ),
    "ffi::StateAccess": (
        "XLA_FFI_State_Set_Args",
        {"context": "ctx", "stage": "stage", "type_id": "type_id", "state": "state"},
    ),
    "ffi::StateAccess (get)": (
        "XLA_FFI_State_Get_Args",
        {"context": "ctx", "stage": "stage", "type_id": "type_id", "state": "state"},
    ),
    "ffi::StreamGet": ("XLA_FFI_Stream_Get_Args", {"context": "ctx", "stream": "stream"}),
    "ffi::RunIdGet": ("XLA_FFI_RunId_Get_Args", {"run_id": "run_id"}),
    "ffi::DeviceOrdinalGet": ("XLA_FFI_DeviceOrdinal_Get_Args", {"ordinal": "device_ordinal"}),
    "ffi::Metadata": (
        "XLA_FFI_Metadata",
        {"version": "api_version", "traits": "traits", "state_type_id": "state_type_id"},
    ),
    "ffi::MetadataExtension": ("XLA_FFI_Metadata_Extension", {"metadata": "metadata"}),
    "ffi::Api": (
        "XLA_FFI_Api",
        {
            "version": "api_version",
            "error_create": "XLA_FFI_Error_Create",
            "stream_get": "XLA_FFI_Stream_Get",
            "type_register": "XLA_FFI_Type_Register",
            "state_set": "XLA_FFI_State_Set",
            "state_get": "XLA_FFI_State_Get",
            "run_id_get": "XLA_FFI_RunId_Get",
            "device_ordinal_get": "XLA_FFI_DeviceOrdinal_Get",
        },
    ),
}
DLPACK = {
    "dl::Device": ("DLDevice", {}),
    "dl::DataType": ("DLDataType", {}),
    "dl::Tensor": (
        "DLTensor",
        {name: name for name in ("data", "device", "ndim", "dtype", "shape", "strides", "byte_offset")},
    ),
    "dl::Managed": ("DLManagedTensor", {"context": "manager_ctx", "deleter": "deleter"}),
    "dl::ManagedVersioned": (
        "DLManagedTensorVersioned",
        {"context": "manager_ctx", "deleter": "deleter", "flags": "flags", "tensor": "dl_tensor"},
    ),
    "dl::ExchangeApi": (
        "DLPackExchangeAPI",
        {
            "previous": "header.prev_api",
            "from_object": "managed_tensor_from_py_object_no_sync",
            "to_object": "managed_tensor_to_py_object_no_sync",
            "borrow_from_object": "dltensor_from_py_object_no_sync",
            "current_work_stream": "current_work_stream",
        },
    ),
}
CONSTANTS = {
    "XLA_FFI_Extension_Metadata": 1,
    "XLA_FFI_Error_Code_CANCELLED": 1,
    "XLA_FFI_Error_Code_UNKNOWN": 2,
    "XLA_FFI_Error_Code_INVALID_ARGUMENT": 3,
    "XLA_FFI_Error_Code_NOT_FOUND": 5,
    "XLA_FFI_Error_Code_FAILED_PRECONDITION": 9,
    "XLA_FFI_Error_Code_INTERNAL": 13,
    "XLA_FFI_Error_Code_UNAVAILABLE": 14,
    "XLA_FFI_DataType_PRED": 1,
    "XLA_FFI_DataType_S8": 2,
    "XLA_FFI_DataType_S16": 3,
    "XLA_FFI_DataType_S32": 4,
    "XLA_FFI_DataType_S64": 5,
    "XLA_FFI_DataType_U8": 6,
    "XLA_FFI_DataType_U16": 7,
    "XLA_FFI_DataType_U32": 8,
    "XLA_FFI_DataType_U64": 9,
    "XLA_FFI_DataType_F16": 10,
    "XLA_FFI_DataType_F32": 11,
    "XLA_FFI_DataType_F64": 12,
    "XLA_FFI_DataType_C64": 15,
    "XLA_FFI_DataType_BF16": 16,
    "XLA_FFI_DataType_C128": 18,
    "XLA_FFI_DataType_F8E5M2": 19,
    "XLA_FFI_DataType_F8E4M3FN": 20,
    "XLA_FFI_DataType_F8E5M2FNUZ": 24,
    "XLA_FFI_DataType_F8E4M3FNUZ": 25,
    "XLA_FFI_DataType_F8E8M0FNU": 33,
    "XLA_FFI_AttrType_SCALAR": 3,
    "XLA_FFI_AttrType_STRING": 4,
    "XLA_FFI_ExecutionStage_INSTANTIATE": 0,
    "XLA_FFI_ExecutionStage_INITIALIZE": 2,
    "XLA_FFI_ExecutionStage_EXECUTE": 3,
    "XLA_FFI_HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE": 1,
    "XLA_FFI_API_MAJOR": 0,
}
DLPACK_CONSTANTS = {
    "kDLCPU": 1,
    "kDLCUDA": 2,
    "kDLROCM": 10,
    "kDLInt": 0,
    "kDLUInt": 1,
    "kDLFloat": 2,
    "kDLBfloat": 4,
    "kDLComplex": 5,
    "kDLBool": 6,
    "kDLFloat8_e4m3fn": 10,
    "kDLFloat8_e4m3fnuz": 11,
    "kDLFloat8_e5m2": 12,
    "kDLFloat8_e5m2fnuz": 13,
    "kDLFloat8_e8m0fnu": 14,
}

# Older runtimes lack these. FFI 0.1 (jaxlib 0.4.35 to 0.7) has no type info and no state in the metadata; before jaxlib
# 0.7 the function that registers types has another name, in the same place. FFI 0.1 and 0.2 have no stage in the calls
# for state (`StateAccess01` in native/xla_ffi.h is for those). Torch before 2.10 has no exchange table.
MAY_BE_ABSENT = {
    "ffi::TypeInfo",
    "ffi::TypeInfo.deleter",
    "ffi::TypeRegister",
    "ffi::TypeRegister.name",
    "ffi::TypeRegister.type_id",
    "ffi::TypeRegister.info",
    "ffi::Api.type_register",
    "ffi::Metadata.state_type_id",
    "ffi::StateAccess.stage",
    "ffi::StateAccess (get).stage",
    "ffi::Api.run_id_get",
    "ffi::Api.device_ordinal_get",
    "ffi::RunIdGet",
    "ffi::RunIdGet.run_id",
    "ffi::DeviceOrdinalGet",
    "dl::ManagedVersioned",
    *(f"dl::ManagedVersioned.{field}" for field in DLPACK["dl::ManagedVersioned"][1]),
    "dl::ExchangeApi",
    *(f"dl::ExchangeApi.{field}" for field in DLPACK["dl::ExchangeApi"][1]),
    "XLA_FFI_DataType_F8E8M0FNU",
    *(name for name in DLPACK_CONSTANTS if "Float8" in name),
}
# Where such a field is absent, the fields after it have other offsets, and the struct has another size.
MOVED_WITHOUT = {
    "ffi::StateAccess.stage": {"ffi::StateAccess", "ffi::StateAccess.type_id", "ffi::StateAccess.state"},
    "ffi::StateAccess (get).stage": {
        "ffi::StateAccess (get)",
        "ffi::StateAccess (get).type_id",
        "ffi::StateAccess (get).state",
    },
    "ffi::TypeRegister.info": {"ffi::TypeRegister"},
    "ffi::Metadata.state_type_id": {"ffi::Metadata"},
}
MAY_GROW = {"ffi::Api"}  # newer runtimes append functions to their table


def declares(text: str, struct: str) -> bool:
    return re.search(rf"(struct\s+{struct}\s*\{{)|(\}}\s*{struct}\s*;)", text) is not None


def program(header: Path, structs: dict, constants: dict) -> str:
    """A C++ program that prints the layouts in the header. It leaves out a field that the header lacks."""
    text = header.read_text()
    lines = [f'#include "{header}"', "#include <cstddef>", "#include <cstdio>"]
    body = []
    for index, (ours, (theirs, fields)) in enumerate(structs.items()):
        names = (theirs,) if isinstance(theirs, str) else theirs
        theirs = next((name for name in names if declares(text, name)), None)
        if theirs is None:
            continue
        lines.append(f"template <class T> void print{index}() {{")
        lines.append(f'  std::printf("{ours}=%zu\\n", sizeof(T));')
        for field, their_field in fields.items():
            lines.append(
                f"  if constexpr (requires(T t) {{ t.{their_field}; }}) "
                f'std::printf("{ours}.{field}=%zu\\n", offsetof(T, {their_field}));'
            )
        lines.append("}")
        body.append(f"  print{index}<{theirs}>();")
    body += [
        f'  std::printf("{name}=%d\\n", static_cast<int>({name}));'
        for name in constants
        if re.search(rf"\b{name}\b", text)
    ]
    return "\n".join([*lines, "int main() {", *body, "}"])


def compiled(directory: Path, header: Path, structs: dict, constants: dict) -> dict[str, int]:
    if COMPILER is None:
        pytest.skip("no C++ compiler is installed")
    if not header.exists():
        pytest.skip(f"{header} is not shipped by this version")
    source, binary = directory / "layout.cc", directory / "layout"
    source.write_text(program(header, structs, constants))
    command = [COMPILER, "-std=c++20", "-Wno-invalid-offsetof", str(source), "-o", str(binary)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    output = subprocess.run([binary], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in (line.split("=") for line in output.splitlines())}


@pytest.mark.parametrize(
    ("header", "structs", "constants"),
    [(FFI_HEADER, XLA, CONSTANTS), (DLPACK_HEADER, DLPACK, DLPACK_CONSTANTS)],
    ids=["xla", "dlpack"],
)
def test_layouts_and_numbers_equal_those_of_the_installed_headers(tmp_path, header, structs, constants):
    theirs = compiled(tmp_path, header, structs, constants)
    wanted = {name for name in structs} | {
        f"{name}.{field}" for name, (_, fields) in structs.items() for field in fields
    }
    absent = (wanted | set(constants)) - set(theirs)
    assert absent <= MAY_BE_ABSENT
    moved = set().union(*(MOVED_WITHOUT.get(name, set()) for name in absent))
    ours = abi_layout()
    for name, value in theirs.items():
        if name in constants:
            assert value == constants[name], name
        elif name in MAY_GROW:
            assert value >= ours[name], name
        elif name not in moved:
            assert value == ours[re.sub(r" \(\w+\)", "", name)], name


def test_every_declared_layout_is_compared():
    structs = {**XLA, **DLPACK}
    compared = {re.sub(r" \(\w+\)", "", name) for name in structs}
    compared |= {
        f"{re.sub(r' [(][a-z]+[)]', '', name)}.{field}" for name, (_, fields) in structs.items() for field in fields
    }
    assert set(abi_layout()) == compared


def test_every_number_in_our_headers_is_compared():
    native = Path(__file__).parents[1] / "native"
    if not native.exists():
        pytest.skip("the tests run without the sources")
    text = (native / "xla_ffi.h").read_text() + (native / "dlpack.h").read_text()
    ours = {name: int(value) for name, value in re.findall(r"\bk(\w+) = (\d+)", text)}
    names = {
        "MetadataExtension": "XLA_FFI_Extension_Metadata",
        "AttrScalar": "XLA_FFI_AttrType_SCALAR",
        "AttrString": "XLA_FFI_AttrType_STRING",
        "Instantiate": "XLA_FFI_ExecutionStage_INSTANTIATE",
        "Initialize": "XLA_FFI_ExecutionStage_INITIALIZE",
        "Execute": "XLA_FFI_ExecutionStage_EXECUTE",
        "CommandBufferCompatible": "XLA_FFI_HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE",
    }
    for name, value in ours.items():
        code = "XLA_FFI_Error_Code_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
        guesses = (names.get(name), f"XLA_FFI_DataType_{name}", code)
        theirs = next((guess for guess in guesses if guess in CONSTANTS), f"kDL{name}")
        assert {**CONSTANTS, **DLPACK_CONSTANTS}[theirs] == value, name
    assert len(ours) >= 30


@pytest.mark.parametrize("absent", ["ffi::StateAccess.stage", "ffi::TypeInfo", "ffi::Metadata.state_type_id"])
def test_the_program_compiles_against_a_header_that_lacks_something(tmp_path, absent):
    """The installed header, without what the headers of FFI 0.1 and 0.2 lack."""
    if not FFI_HEADER.exists():
        pytest.skip("this jaxlib ships no header")
    text = FFI_HEADER.read_text()
    if absent == "ffi::StateAccess.stage":
        pattern = r"(struct XLA_FFI_State_[SG]et_Args \{[^}]*?)  XLA_FFI_ExecutionStage stage;\n"
        older = re.sub(pattern, r"\1", text)
    elif absent == "ffi::TypeInfo":
        older = re.sub(r"typedef struct XLA_FFI_TypeInfo \{.*?\} XLA_FFI_TypeInfo;\n", "", text, flags=re.S)
        older = re.sub(r"XLA_FFI_DEFINE_STRUCT_TRAITS\(XLA_FFI_TypeInfo, deleter\);\n", "", older)
        older = re.sub(r"  const XLA_FFI_TypeInfo\* type_info;\n", "", older)
    else:
        older = re.sub(r"(struct XLA_FFI_Metadata \{[^}]*?)  XLA_FFI_TypeId state_type_id;\n", r"\1", text)
    if older == text:
        pytest.skip("the installed header lacks it too")
    header = tmp_path / "c_api.h"
    header.write_text(older)
    found = compiled(tmp_path, header, XLA, CONSTANTS)
    assert absent not in found
    assert found["ffi::CallFrame"] == abi_layout()["ffi::CallFrame"]
