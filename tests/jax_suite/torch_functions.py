"""Torch functions in place of those of JAX that JAX's own tests call.

A call goes to torch through t2j where a torch function can take its place. Any other call goes to the real function:
one with keyword arguments other than `precision`, one of arrays that torch does not have (keys, float8, symbolic
shapes, references), and one that JAX refuses. `COUNTS` says how many calls went which way.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from jax._src.lax.lax import _convert_element_type as convert_element_type
from jax._src.numpy.util import promote_dtypes, promote_dtypes_inexact
from jax.sharding import PartitionSpec
from t2j_autodiff import torch2jax

UNARY = ("sin", "cos", "tan", "exp", "log", "tanh", "sinh", "cosh", "log1p", "expm1")
BINARY = ("dot", "matmul")
NAMES = {*UNARY, *BINARY}

INEXACT = {"float16", "bfloat16", "float32", "float64", "complex64", "complex128"}
DTYPES = INEXACT | {"int8", "int16", "int32", "int64", "uint8"}
"""The dtypes with which torch computes all these functions on the CPU."""
LACKS = "a dtype that torch lacks"
FULL = (None, "highest", lax.Precision.HIGHEST)
"""The values of `precision` with which JAX computes on the CPU as torch does."""

Operands = list[jax.Array]
COUNTS: collections.Counter[str] = collections.Counter()
TORCH = "torch"
"""The key of `COUNTS` for calls that went to torch; the other keys are reasons why a call did not."""


class NotTorch(Exception):
    """Why a torch function cannot take the place of a call."""


# --- operands ------------------------------------------------------------------------------------------------------


def check(args: tuple[Any, ...], kwargs: dict[str, Any], dtypes: set[str], count: int) -> None:
    """Raise `NotTorch` unless the arguments are as many arrays or numbers as the function takes."""
    if len(args) != count:
        raise NotTorch("a wrong number of arguments")
    if any(name != "precision" or value not in FULL for name, value in kwargs.items()):
        raise NotTorch("keyword arguments")
    for value in args:
        if isinstance(value, (bool, int, float, complex)):
            continue
        if not isinstance(value, (np.ndarray, np.generic, jax.Array)):
            raise NotTorch("neither an array nor a number")
        aval = jax.typeof(value)
        if not isinstance(aval, jax.core.ShapedArray) or aval.dtype.name not in dtypes:
            raise NotTorch(LACKS)
        if not all(isinstance(size, int) for size in aval.shape):
            raise NotTorch("a symbolic shape")
        if aval.sharding.spec != PartitionSpec(*(None for _ in aval.shape)):
            raise NotTorch("an array that is sharded over Explicit mesh axes")  # which `t2j_dist` takes


def of_unary(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operands:
    """The operand of a function of `jnp`, which promotes integers to floats."""
    check(args, kwargs, DTYPES | {"bool"}, 1)
    return promoted(promote_dtypes_inexact, args)


def of_lax_unary(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operands:
    """The operand of a function of `lax`, which promotes nothing."""
    check(args, kwargs, INEXACT, 1)
    if isinstance(args[0], (bool, int)):
        raise NotTorch("a dtype that JAX refuses")
    return promoted(promote_dtypes, args)


def of_dot(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operands:
    """The operands of `jnp.dot`."""
    check(args, kwargs, DTYPES | {"bool"}, 2)
    a, b = map(np.shape, args)
    if a and b and a[-1] != b[max(len(b) - 2, 0)]:
        raise NotTorch("shapes that JAX refuses")
    return promoted(promote_dtypes, args)


def of_matmul(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operands:
    """The operands of `jnp.matmul`, and of the operator."""
    operands = of_dot(args, kwargs)
    a, b = (operand.shape for operand in operands)
    if not a or not b or (len(a) != len(b) and max(len(a), len(b)) > 2):
        raise NotTorch("shapes that JAX refuses")  # its tests forbid that ranks are promoted
    try:
        np.broadcast_shapes(a[:-2], b[:-2])
    except ValueError:
        raise NotTorch("shapes that JAX refuses") from None
    return operands


def of_lax_dot(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operands:
    """The operands of `lax.dot`, which takes vectors and matrices of one dtype."""
    check(args, kwargs, DTYPES, 2)
    a, b = map(jax.typeof, args)
    if a.ndim not in (1, 2) or b.ndim not in (1, 2) or a.dtype != b.dtype:
        raise NotTorch("other shapes or dtypes than `lax.dot` is for")
    return of_dot(args, kwargs)


def promoted(promote: Callable[..., Operands], args: tuple[Any, ...]) -> Operands:
    """The arguments as JAX promotes them, unless it does not."""
    try:
        operands = list(promote(*args))
    except (TypeError, OverflowError, ValueError):
        raise NotTorch("dtypes that JAX refuses") from None
    if operands[0].dtype.name not in DTYPES:
        raise NotTorch(LACKS)
    return operands


# --- functions -----------------------------------------------------------------------------------------------------


def torch_dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`np.dot`: a sum over the last axis of `a` and the last but one of `b`."""
    if not a.ndim or not b.ndim:
        return a * b
    return torch.tensordot(a, b, dims=([a.ndim - 1], [max(b.ndim - 2, 0)]))


def replaced(real: Callable[..., Any], function: Callable[..., Any], operands_of: Callable[..., Operands]) -> Any:
    """A function of JAX whose calls go to a torch function where that can take its place."""
    wrapped = torch2jax(function, depth=None)

    @functools.wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            operands = operands_of(args, kwargs)
        except NotTorch as reason:
            COUNTS[str(reason)] += 1
            return real(*args, **kwargs)
        COUNTS[TORCH] += 1
        result = wrapped(*operands)
        if all(jax.typeof(operand).weak_type for operand in operands):  # a property of JAX that torch does not have
            result = convert_element_type(result, result.dtype, weak_type=True)
        return result

    return call


REPLACEMENTS: dict[int, tuple[Any, Any]] = {
    id(real): (real, replaced(real, function, operands_of))
    for real, function, operands_of in (
        *((getattr(jnp, name), getattr(torch, name), of_unary) for name in UNARY),
        *((getattr(lax, name), getattr(torch, name), of_lax_unary) for name in UNARY),
        (jnp.dot, torch_dot, of_dot),
        (jnp.matmul, torch.matmul, of_matmul),
        (lax.dot, torch_dot, of_lax_dot),
    )
}
"""By the identity of a function: the function, which is thus kept alive, and what takes its place."""


def in_place_of(value: Any) -> Any:
    """The function that takes the place of a function of JAX; any other value as it is."""
    return REPLACEMENTS.get(id(value), (None, value))[1]


def matmul(a: Any, b: Any) -> Any:
    """The operator `@`, by torch if an operand is an array of JAX."""
    if any(isinstance(operand, jax.Array) for operand in (a, b)):
        return in_place_of(jnp.matmul)(a, b)
    return a @ b
