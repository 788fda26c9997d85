"""`Rules`: what JAX's transformations do with a call of a torch function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from .. import _compat
from .._base.errors import TransformError, describe
from .._signature.signature import Signature


class _HasSignature(Protocol):
    @property
    def signature(self) -> Signature: ...


F = TypeVar("F", bound=_HasSignature)
"""`TorchFn`, which has rules and is therefore defined above them."""


class Rules(Generic[F]):
    """The rules of a function that is only called. Sister packages override them.

    A call has one operand per leaf of `fn.signature.operands`, and one result per leaf of `fn.signature.outputs`. JAX
    calls each method while it traces, with arrays or tracers; `fn` is the function whose call is transformed. Rules do
    not refer to `fn`: programs own their functions from C++, where the garbage collector sees no cycle.
    """

    def jvp(self, primals: Sequence[Any], tangents: Sequence[Any], *, fn: F) -> tuple[Sequence[Any], Sequence[Any]]:
        """Forward mode: the results at `primals`, and a tangent for each.

        `tangents` has one entry per operand: an array of its shape, or JAX's symbolic zero. So has the result.
        """
        raise _only_called(fn, "differentiated")

    def transpose(self, cotangents: Sequence[Any], operands: Sequence[Any], *, fn: F) -> Sequence[Any]:
        """Transposition: a cotangent for each operand that the call is linear in, and None for all others.

        The operands that it is linear in are undefined primals, which have an aval alone. `cotangents` has one entry
        per result: an array of its shape, or JAX's symbolic zero.
        """
        raise _only_called(fn, f"transposed, which {_compat.transposing_call()} needs")

    def batch(
        self, operands: Sequence[Any], dims: Sequence[int | None], *, fn: F
    ) -> tuple[Sequence[Any], Sequence[int | None]]:
        """Batching: the results with a batch axis, and where each result has it.

        `dims` says where each operand has its batch axis; None: nowhere, it is the same for all examples.
        """
        raise _only_called(fn, "batched with `jax.vmap`")

    def without_unused(self, used: Sequence[bool], *, fn: F) -> F | None:
        """A cheaper function with the same operands whose results are the first ones of `fn`; None if there is none.

        `used` says which results the program uses.
        """
        return None

    def with_results(self, *, fn: F) -> F | None:
        """One function for two calls: `fn`, and the one before it whose last result is the operand `fn.ticket`.

        It takes the operands of `fn` without that one, and returns what users see of the other call's results, then
        those of `fn`. None if there is none. Compiled programs run it; it is not transformed.
        """
        return None


def _only_called(fn: _HasSignature, what: str) -> TransformError:
    return TransformError(
        describe(
            f"{fn.signature.name} was wrapped with `t2j_core.torch2jax`, which only calls it; it cannot be {what}.",
            remedy="Install t2j-autodiff and change one import: `from t2j_autodiff import torch2jax`.",
        )
    )
