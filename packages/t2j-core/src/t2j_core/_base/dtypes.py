"""The one table of dtypes that JAX, PyTorch and DLPack share."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.typing import DTypeLike

from .errors import DTypeError, describe

AnyDType = DTypeLike | torch.dtype
"""A dtype of JAX (or NumPy) or of torch, in any spelling."""


class Row(NamedTuple):
    """A dtype under its names in JAX and torch, and as DLPack's (code, bits)."""

    jax: np.dtype[Any]
    torch: torch.dtype
    code: int
    bits: int
    short: str


# DLPack's type codes: `DLDataTypeCode` in dlpack.h (https://github.com/dmlc/dlpack/blob/main/include/dlpack/dlpack.h).
_INT, _UINT, _FLOAT, _BFLOAT, _COMPLEX, _BOOL = 0, 1, 2, 4, 5, 6
_E4M3FN, _E4M3FNUZ, _E5M2, _E5M2FNUZ, _E8M0FNU = 10, 11, 12, 13, 14

_NAMES: tuple[tuple[str, int, int, str], ...] = (
    ("bool", _BOOL, 8, "bool"),
    ("int8", _INT, 8, "i8"),
    ("int16", _INT, 16, "i16"),
    ("int32", _INT, 32, "i32"),
    ("int64", _INT, 64, "i64"),
    ("uint8", _UINT, 8, "u8"),
    ("uint16", _UINT, 16, "u16"),
    ("uint32", _UINT, 32, "u32"),
    ("uint64", _UINT, 64, "u64"),
    ("float16", _FLOAT, 16, "f16"),
    ("bfloat16", _BFLOAT, 16, "bf16"),
    ("float32", _FLOAT, 32, "f32"),
    ("float64", _FLOAT, 64, "f64"),
    ("complex64", _COMPLEX, 64, "c64"),
    ("complex128", _COMPLEX, 128, "c128"),
    ("float8_e4m3fn", _E4M3FN, 8, "f8_e4m3fn"),
    ("float8_e4m3fnuz", _E4M3FNUZ, 8, "f8_e4m3fnuz"),
    ("float8_e5m2", _E5M2, 8, "f8_e5m2"),
    ("float8_e5m2fnuz", _E5M2FNUZ, 8, "f8_e5m2fnuz"),
    ("float8_e8m0fnu", _E8M0FNU, 8, "f8_e8m0fnu"),
)
# Packed dtypes, of 1 to 7 bits, have no row: in a buffer each element is a whole number of bytes.


def _rows() -> list[Row]:
    rows = []
    for name, code, bits, short in _NAMES:
        scalar = getattr(jnp, "bool_" if name == "bool" else name, None)
        dtype = getattr(torch, name, None)
        if scalar is not None and dtype is not None:  # float8_e8m0fnu is missing from torch 2.6
            rows.append(Row(np.dtype(scalar), dtype, code, bits, short))
    return rows


ROWS = _rows()
_BY_JAX = {row.jax: row for row in ROWS}
_BY_TORCH = {row.torch: row for row in ROWS}


def row_of_jax(dtype: DTypeLike | None) -> Row:
    """The table's row for a JAX dtype. Raises `DTypeError` if torch has none."""
    try:
        if dtype is not None:  # `np.dtype(None)` is float64
            return _BY_JAX[np.dtype(dtype)]
    except (KeyError, TypeError):
        pass
    raise DTypeError(_unsupported(dtype))


def row_of_torch(dtype: torch.dtype) -> Row:
    """The table's row for a torch dtype. Raises `DTypeError` if JAX has none."""
    try:
        return _BY_TORCH[dtype]
    except KeyError:
        raise DTypeError(_unsupported(dtype)) from None


def _unsupported(dtype: AnyDType | None) -> str:
    name = _name_of(dtype)
    if isinstance(dtype, torch.dtype):
        what, remedy = f"`{dtype}` is a dtype that JAX does not have.", "Convert with `tensor.to(...)` first."
    elif name is None:
        what, remedy = f"{dtype!r} is not a dtype.", "Pass a dtype such as `jnp.float32` or `torch.float32`."
    else:
        what, remedy = f"`{name}` is a dtype that PyTorch does not have.", "Convert with `array.astype(...)` first."
    if name is not None and name.startswith("key<"):
        remedy = "For random numbers in torch, wrap with `rng=True` and pass the key first; else `jax.random.key_data`."
    if name is not None and (bits := packed_bits(name)):
        what = f"`{name}` is packed: its numbers have {bits} bits, and only whole bytes cross between JAX and PyTorch."
    return describe(what, expected="one of " + ", ".join(str(row.jax) for row in ROWS), got=dtype, remedy=remedy)


def _name_of(dtype: AnyDType | None) -> str | None:
    """The name of a dtype; None for what is not a dtype."""
    if isinstance(dtype, torch.dtype):
        return str(dtype).removeprefix("torch.")
    if dtype is None:
        return None
    try:
        return str(np.dtype(dtype))
    except TypeError:
        pass
    try:
        return str(dtype) if jnp.issubdtype(dtype, jax.dtypes.extended) else None  # the dtype of JAX's keys
    except TypeError:
        return None


def packed_bits(name: str) -> int | None:
    """How many bits a number of a dtype has by its name, if they are not whole bytes; None if they are.

    >>> packed_bits("float4_e2m1fn"), packed_bits("quint2x4"), packed_bits("float8_e4m3fn")
    (4, 2, None)
    """
    found = re.match(r"[a-z]+(\d+)", name)
    bits = int(found[1]) if found else 8
    return bits if bits % 8 else None


def dtype_j2t(dtype: AnyDType) -> torch.dtype:
    """The torch dtype of a JAX (or NumPy) dtype; a torch dtype is returned unchanged.

    Raises `DTypeError` for a dtype that torch does not have.

    >>> dtype_j2t("bfloat16")
    torch.bfloat16
    """
    return row_of_torch(dtype).torch if isinstance(dtype, torch.dtype) else row_of_jax(dtype).torch


def dtype_t2j(dtype: AnyDType) -> np.dtype[Any]:
    """The JAX dtype of a torch dtype, 64-bit ones included; a JAX (or NumPy) dtype is returned unchanged.

    Raises `DTypeError` for a dtype that JAX does not have (quantised ones, `torch.complex32`, ...).

    >>> dtype_t2j(torch.float16)
    dtype('float16')
    """
    return row_of_torch(dtype).jax if isinstance(dtype, torch.dtype) else row_of_jax(dtype).jax


def canonical(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype that JAX stores values of `dtype` in: 32-bit while x64 is off."""
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype))


def aval_text(shape: tuple[int, ...], dtype: DTypeLike) -> str:
    """A shape and dtype as JAX prints them.

    >>> aval_text((8, 3), "float32")
    'f32[8,3]'
    """
    try:
        short = row_of_jax(dtype).short
    except DTypeError:
        short = str(dtype)
    return f"{short}[{','.join(map(str, shape))}]"
