"""What it means that the library gives what native torch gives: tensors, their copies, and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import torch
import torch.utils._pytree as torch_tree
from t2j_autodiff import dtype_t2j, j2t

Tensors = list[torch.Tensor]
TOLERANCE = {"float32": 1e-4, "complex64": 1e-4, "float64": 1e-9, "complex128": 1e-9, "bfloat16": 3e-2}
TOLERANCE |= {f"float8_{kind}": 1e-4 for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")}


class NotCounted(Exception):
    """The check gives no information about the library."""


class Mismatch(AssertionError):
    """The library's result differs from native torch."""


def is_inexact(t: torch.Tensor) -> bool:
    """Whether a tensor can have a derivative."""
    return t.is_floating_point() or t.is_complex()


def is_dense(t: torch.Tensor) -> bool:
    """Whether a JAX array can hold a tensor."""
    return t.layout == torch.strided and not (t.is_quantized or t.is_nested or t.is_meta)


def twin(t: torch.Tensor) -> torch.Tensor:
    """A copy, with the strides and the surrounding memory of the original, which some operators read."""
    if t.is_conj() or t.is_neg() or not t.numel():
        return t.detach().clone()
    storage = t.untyped_storage().clone()
    return torch.empty(0, dtype=t.dtype, device=t.device).set_(storage, t.storage_offset(), t.shape, t.stride())


def leaves_of(y: Any) -> Tensors:
    """The tensors of an output, without their history."""
    return [leaf for leaf in torch_tree.tree_leaves(y) if isinstance(leaf, torch.Tensor)]


def noise(like: Sequence[torch.Tensor], seed: int) -> Tensors:
    """Random tensors of the same shapes and dtypes: the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, dtype=computed_in(t.dtype), generator=generator).to(t.device, t.dtype) for t in like]


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which numbers of another are computed: itself, but for float8, in which torch computes nothing."""
    return torch.float32 if dtype.itemsize == 1 else dtype


def wide(t: torch.Tensor) -> torch.Tensor:
    """The same numbers in double precision."""
    return t.to(torch.complex128 if t.is_complex() else torch.float64)


def compare(got: Sequence[Any], expected: Sequence[torch.Tensor], tolerance: float) -> None:
    """Raise `Mismatch` unless the arrays equal the tensors in shape, dtype and value."""
    if len(got) != len(expected):
        raise Mismatch(f"{len(got)} outputs instead of {len(expected)}")
    for k, (array, tensor) in enumerate(zip(got, expected, strict=True)):
        compare_one(array, tensor.detach().resolve_conj().resolve_neg().cpu(), f"output {k}", tolerance)


def compare_one(array: Any, expected: torch.Tensor, label: str, tolerance: float) -> None:
    """Like `compare`, for one output."""
    if tuple(array.shape) != tuple(expected.shape):
        raise Mismatch(f"{label} has shape {tuple(array.shape)} instead of {tuple(expected.shape)}")
    stored = jax.dtypes.canonicalize_dtype(dtype_t2j(expected.dtype))
    if array.dtype != stored:
        raise Mismatch(f"{label} has dtype {array.dtype} instead of {stored}")
    got = j2t(array).cpu()
    if not is_inexact(expected):
        if not torch.equal(got, expected.to(got.dtype)):
            raise Mismatch(f"{label} differs in {int((got != expected.to(got.dtype)).sum())} of {got.numel()} elements")
        return
    got, expected = wide(got), wide(expected)
    sizes = expected.abs()
    scale = float(sizes[sizes.isfinite()].max()) if bool(sizes.isfinite().any()) else 0.0
    close = torch.isclose(got, expected, rtol=tolerance, atol=tolerance * max(scale, 1e-2), equal_nan=True)
    if not bool(close.all()):
        worst = (got - expected).abs().nan_to_num(nan=torch.inf)[~close].max()
        raise Mismatch(f"{label} differs by up to {float(worst):.2g} where the largest value is {scale:.2g}")


def native(call: Callable[[], Any]) -> Any:
    """The result of native torch. If torch raises, the check is not counted."""
    try:
        return call()
    except NotCounted:
        raise
    except Exception as error:
        raise NotCounted(f"native torch fails ({type(error).__name__})") from error


def compare_products(
    pushed: Sequence[Any], cotangents: Tensors, grads: Tensors, tangents: Tensors, tolerance: float
) -> None:
    """Check the identity <ct, J t> = <J^T ct, t>. For complex numbers only the real parts are equal."""
    if [tuple(p.shape) for p in pushed] != [tuple(ct.shape) for ct in cotangents]:
        raise Mismatch(f"tangents have shapes {[p.shape for p in pushed]}")
    terms = [products(ct, j2t(p)) for ct, p in zip(cotangents, pushed, strict=True)]
    left = torch.cat(terms) if terms else torch.zeros(1)
    right = torch.cat([products(g, t) for g, t in zip(grads, tangents, strict=True)])
    scale = float(torch.maximum(left.abs().sum(), right.abs().sum()))
    difference = abs(float(left.sum()) - float(right.sum()))
    if not difference <= 10 * tolerance * max(scale, 1e-2) and not left.isnan().any():
        raise Mismatch(f"the dot products differ by {difference:.2g} of {scale:.2g}")


def products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The real parts of the products of all elements, on the host."""
    return (a.cpu().to(torch.complex128) * b.cpu().to(torch.complex128)).real.flatten()
