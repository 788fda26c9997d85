"""Operands that a function has written into, or keeps after its call."""

from __future__ import annotations

import torch

from .._base.errors import PerformanceWarning, T2jWarning, TensorEscapeError, TensorMutationError, describe
from .._base.garbage import collect
from .._compat import storage_uses
from .comparing import _bytes_of, has_same_bits
from .lending import Lending
from .pointers import has_pointers


def operand_written(lending: Lending, index: int, is_private: bool, has_lent: bool) -> None:
    """The function wrote into an operand: into a copy, or into the caller's array.

    `has_lent` says that calls before this one lent the operand, and may have changed arrays unseen.
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
    lending.warn_once(
        f"{name} changes {path} in place. JAX arrays are immutable, so it gets a copy at every call. To avoid the "
        "copy, return the changed tensor and list the argument in `mutable_argnums`.",
        PerformanceWarning,
        f"written {path}",
    )


# --- operands that are kept ---------------------------------------------------------------------------------------


def argument_kept(lending: Lending, index: int, is_result: bool, is_late: bool) -> None:
    """Something still refers to an operand (or to memory for a result), which has memory of its own by now.

    `is_late` says that a check has found it, and that calls between may have gone unseen.
    """
    path, name = lending.path(index, is_result=is_result), lending.name
    if not is_result:
        lending.copy_from_now_on(index, "the function keeps it")
    if lending.arguments == "check":
        raise TensorEscapeError(
            describe(
                f"{name} keeps {path}, or something that refers to it, beyond the call.",
                expected="every tensor over an argument gone when the function returns",
                got="a tensor, view, NumPy array, autograd graph or stored exception that still refers to one",
                remedy="Store `tensor.clone()` instead (with `.detach()` if an autograd graph would keep it).",
            )
        )
    if "keeps state" in lending.told:  # which was a warning of the same
        return
    lending.warn_once(
        f"{name} keeps {path}, or something that refers to it, beyond the call. What it keeps has memory of its own, "
        "and from now on the function gets a copy of that argument at every call. Keep `tensor.clone()` instead, or "
        'wrap the function with `arguments="copy"` if this is meant.'
        + (" DLPack capsules that earlier calls have kept cannot be told, and must not be read." if is_late else ""),
        T2jWarning,
        f"kept {path}",
    )


def check_example(
    lending: Lending, index: int, twin: torch.UntypedStorage, original: torch.Tensor, uses: int | None
) -> None:
    """Raise where a function has written into an example of a batch, or keeps it. It got a copy in `twin`.

    `uses` is how often the memory of the copy may be referred to; None where that does not tell.
    """
    if not has_same_bits(twin, original.detach().clone().untyped_storage()):
        operand_written(lending, index, is_private=True, has_lent=False)
    if uses is not None and storage_uses(twin) > uses:
        collect_garbage()
        if storage_uses(twin) > uses:
            argument_kept(lending, index, is_result=False, is_late=False)


def collect_garbage() -> None:
    """Free what nobody refers to any more, and what torch itself keeps.

    Within an autocast of the caller's, the casts that one inside the function remembers (`cache_enabled=True`) refer to
    arguments until the caller's ends.
    """
    torch.clear_autocast_cache()
    collect()


def operand_in_cycle(lending: Lending, index: int) -> None:
    """Calls leave the operand in a reference cycle, or in a cache of torch's."""
    lending.copy_from_now_on(index, "the function leaves it to the garbage collector")


def movable_copy(
    can_move: bool, lending: Lending, index: int, is_result: bool, storage: torch.UntypedStorage
) -> torch.UntypedStorage:
    """A copy of memory of XLA that something still refers to, to be put in its place.

    Raises `TensorEscapeError` where something refers to the address itself, as a NumPy array does.
    """
    if not can_move or has_pointers(storage):
        path = lending.path(index, is_result=is_result)
        if not is_result:
            lending.copy_from_now_on(index, "the function keeps it")
        raise _escaped(lending.name, path, "outputs" if is_result else "arguments")
    data = torch.empty(storage.nbytes(), dtype=torch.uint8, device=storage.device)
    data.copy_(_bytes_of(storage))
    return data.untyped_storage()


def raise_escaped(lending: Lending) -> None:
    """Raise for memory that is still lent, and that no tensor leads to any more."""
    raise _escaped(lending.name, "an argument or a result", "arguments")


def _escaped(name: str, path: str, option: str) -> TensorEscapeError:
    return TensorEscapeError(
        describe(
            f"{name} keeps {path} beyond the call, in a way that t2j cannot move to other memory. "
            "Its memory belongs to XLA, which may reuse or free it.",
            expected="every tensor over an argument gone when the function returns",
            got="a NumPy array, a memoryview or a DLPack capsule that refers to the memory itself",
            remedy="Store `tensor.clone()` instead (with `.detach()` if an autograd graph would keep it), or wrap the "
            f'function with `{option}="copy"`.',
        )
    )
