"""Whether the results of a torch function are what its signature says."""

from __future__ import annotations

from typing import NoReturn

import torch

from .. import _compat
from .._base.dtypes import aval_text, canonical, dtype_t2j
from .._base.errors import DataDependentShapeError, DTypeError, OutputError, describe
from .._infer.fixed_shapes import fixed_shapes
from .._signature.array_names import named_avals
from .._signature.reordered import remedy_for_tree
from .._signature.signature import Leaf, Signature

_DEVICE_TYPES = {1: "cpu", 2: "cuda", 10: "cuda"}  # DLPack's numbers; torch calls ROCm "cuda"


def refuse_results(signature: Signature, results: object) -> NoReturn:
    """Raise for what a target returned in place of a tuple with one tensor per result."""
    n = len(signature.outputs.leaves)
    got = f"{len(results)} tensors" if isinstance(results, (tuple, list)) else f"a {type(results).__name__}"
    raise OutputError(
        describe(
            f"{signature.name} did not return what it should.",
            expected="one tensor" if signature.outputs.single else f"{n} tensors in the declared tree",
            got=got,
            remedy=remedy_for_tree(signature.outputs),
        )
    )


def check_output(signature: Signature, index: int, value: object, device_type: int, device_id: int) -> torch.Tensor:
    """A result as a tensor that torch can copy into the result buffer. Raises if it is not what the signature says.

    `device_type` and `device_id` are DLPack's of the buffer.
    """
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
    if value.is_meta or not _compat.has_data(value):
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
    """The error for an output whose shape or dtype is not that of the signature."""
    got, is_declared = _short(value), signature.outputs.is_declared  # None: neither declared nor inferred
    if is_declared:
        remedy = "Correct `output_shapes`, or the shape and dtype the function returns."
        return OutputError(_wrong(signature, path, str(leaf), got, remedy))
    if is_declared is False and tuple(value.shape) != leaf.shape:
        what = f"The shape of {path} of {signature.name} depends on the values of its inputs"
        what = f"{what} ({named_avals(signature.call_tree, signature.operands)})."
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
