"""Leaves of outputs, and whether two lists of them agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
from t2j_autodiff import dtype_t2j, j2t

SMALL = 1e-2  # of the largest value of all outputs: what is smaller is judged as if it were that large


class NotCounted(Exception):
    """The check gives no information about the library."""


class Mismatch(AssertionError):
    """The library's result differs from that of the judge."""


def leaves_of(tree: Any) -> list[Any]:
    """The tensors or arrays of an output, in an order that is the same for torch and for JAX."""
    if isinstance(tree, torch.Tensor | jax.Array):
        return [tree]
    if isinstance(tree, Mapping):
        return [leaf for key in sorted(tree) for leaf in leaves_of(tree[key])]
    if isinstance(tree, list | tuple):
        return [leaf for part in tree for leaf in leaves_of(part)]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return leaves_of({f.name: getattr(tree, f.name) for f in dataclasses.fields(tree)})
    return [] if tree is None or isinstance(tree, str) else jax.tree.leaves(tree)


def is_inexact(leaf: Any) -> bool:
    """Whether a tensor or an array can have a derivative."""
    if isinstance(leaf, torch.Tensor):
        return leaf.is_floating_point() or leaf.is_complex()
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact))


def inexact(leaves: Sequence[Any]) -> list[Any]:
    """Those that can have a derivative."""
    return [leaf for leaf in leaves if is_inexact(leaf)]


def native(call: Callable[[], Any]) -> Any:
    """The result of the judge. If it raises, the check is not counted."""
    try:
        return call()
    except NotCounted:
        raise
    except Exception as error:
        raise NotCounted(f"the judge fails: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0][:200]


def compare(got: Sequence[Any], expected: Sequence[Any], tolerance: float) -> None:
    """Raise `Mismatch` unless the arrays equal the tensors, or the other arrays, in shape, dtype and value."""
    if len(got) != len(expected):
        raise Mismatch(f"{len(got)} leaves instead of {len(expected)}")
    sizes = [_largest(_wide(leaf)) for leaf in expected if is_inexact(leaf)]
    floor = SMALL * max(sizes, default=0.0)
    for k, (array, leaf) in enumerate(zip(got, expected, strict=True)):
        _compare_one(array, leaf, f"leaf {k}", tolerance, floor)


def _compare_one(array: Any, expected: Any, label: str, tolerance: float, floor: float) -> None:
    if tuple(array.shape) != tuple(expected.shape):
        raise Mismatch(f"{label} has shape {tuple(array.shape)} instead of {tuple(expected.shape)}")
    dtype = dtype_t2j(expected.dtype) if isinstance(expected, torch.Tensor) else expected.dtype
    if array.dtype != jax.dtypes.canonicalize_dtype(dtype):
        raise Mismatch(f"{label} has dtype {array.dtype} instead of {dtype}")
    a, b = _wide(array), _wide(expected)
    if not is_inexact(expected):
        if not np.array_equal(a, b):
            raise Mismatch(f"{label} differs in {int((a != b).sum())} of {a.size} elements")
        return
    scale = max(_largest(b), floor)
    close = np.isclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
    if not close.all():
        worst = np.nan_to_num(np.abs(a - b)[~close], nan=np.inf).max()
        raise Mismatch(f"{label} differs by up to {worst:.2g} where the largest value is {scale:.2g}")


def _wide(leaf: Any) -> np.ndarray[Any, Any]:
    """Values on the host, in the widest dtype of their kind."""
    if isinstance(leaf, torch.Tensor):
        leaf = leaf.detach().resolve_conj().resolve_neg()
    elif jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(leaf))
    else:
        leaf = j2t(leaf)
    if leaf.is_complex():
        return leaf.to(torch.complex128).numpy()
    return leaf.double().numpy() if leaf.is_floating_point() else leaf.numpy()


def _largest(values: np.ndarray[Any, Any]) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0
