"""The rules by which JAX transforms a primitive: those of the function that a call runs (`TorchFn.rules`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from .. import _compat
from .._run.torch_fn import TorchFn
from .._run.weak_fn import WeakFn, strong
from .refusals import no_taylor_series


def register_rules(primitive: _compat.Primitive) -> None:
    """Let JAX transform calls of `primitive`, whose parameter `fn` is a `TorchFn`."""
    _compat.ad.primitive_jvps[primitive] = _jvp
    _compat.ad.primitive_transposes[primitive] = _transpose
    _compat.batching.primitive_batchers[primitive] = _batch
    _compat.register_dce(primitive, _without_unused)
    _compat.register_jet(primitive, _jet)
    _compat.register_checkify(primitive, _for_checkify)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, fn: TorchFn) -> tuple[Sequence[Any], Sequence[Any]]:
    return fn.rules.jvp(primals, tangents, fn=fn)


def _transpose(cotangents: Sequence[Any], *operands: Any, fn: TorchFn) -> Sequence[Any]:
    return fn.rules.transpose(cotangents, operands, fn=fn)


def _batch(
    operands: Sequence[Any], dims: Sequence[int | None], *, fn: TorchFn
) -> tuple[Sequence[Any], Sequence[int | None]]:
    return fn.rules.batch(operands, dims, fn=fn)


def _without_unused(used: Sequence[bool], fn: TorchFn | WeakFn) -> tuple[TorchFn, int] | None:
    """A cheaper function, and how many results it has. The program of an eager call runs its function as it is."""
    smaller = None if isinstance(fn, WeakFn) else fn.rules.without_unused(used, fn=fn)
    return None if smaller is None else (smaller, len(smaller.signature.outputs.leaves))


def _jet(primals: object, series: object, *, fn: TorchFn) -> NoReturn:
    raise no_taylor_series(fn)


def _for_checkify(fn: TorchFn | WeakFn) -> tuple[str, int]:
    """The name of a call in errors, and how many of its results users see."""
    fn = strong(fn)
    return f"torch_call of {fn.signature.name}", len(fn.signature.outputs.leaves) - fn.hidden
