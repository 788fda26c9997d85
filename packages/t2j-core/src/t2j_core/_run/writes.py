"""Operands that a function has written into."""

from __future__ import annotations

from .._base.errors import PerformanceWarning, T2jWarning, TensorMutationError, describe
from .lending import Lending


def operand_written(lending: Lending, index: int, is_private: bool, has_lent: bool) -> None:
    """Warn or raise: the function wrote into an operand, of which it had a private copy, or into the caller's array.

    `has_lent` says that earlier calls were lent the operand, and may have changed arrays without being seen.
    """
    path, name = lending.path(index), lending.name
    lending.copy_from_now_on(index, "the function writes into it")
    if not is_private:
        raise TensorMutationError(
            describe(
                f"{name} changed {path} in place, so the JAX array that was passed HAS BEEN CHANGED.",
                expected=f"{path} {lending.signature.operands[index]} left as it was",
                got="different contents, or an in-place operation that the tensor's version counter shows",
                remedy='Work on `tensor.clone()`, wrap the function with `arguments="copy"`, or list the argument in '
                "`mutable_argnums` and return it. Later calls get a copy.",
            )
        )
    if lending.arguments == "check":
        raise TensorMutationError(
            describe(
                f"{name} changes {path} in place.",
                expected=f"{path} {lending.signature.operands[index]} left as it was",
                got='different contents after the call; it was a copy, because of `arguments="check"`',
                remedy="Work on `tensor.clone()`, or list the argument in `mutable_argnums` and return it.",
            )
        )
    if has_lent:
        lending.warn_once(
            f"{name} changes {path} in place, in a way that PyTorch does not count. This was not so in its first call. "
            "It gets a copy from now on, but ARRAYS OF EARLIER CALLS MAY HAVE BEEN CHANGED. Wrap the function with "
            '`arguments="copy"`.',
            T2jWarning,
            f"written late {path}",
        )
        return
    lending.warn_once(gets_copies(name, path), PerformanceWarning, f"written {path}")


def gets_copies(name: str, path: str) -> str:
    """The warning for a function that writes into an operand, and therefore gets a copy of it at every call."""
    return (
        f"{name} changes {path} in place. JAX arrays are immutable, so it gets a copy at every call. To avoid the "
        "copy, return the changed tensor and list the argument in `mutable_argnums`."
    )
