"""Operands that a function keeps after its call."""

from __future__ import annotations

import collections
from typing import NoReturn

import torch

from .._base.errors import T2jWarning, TensorEscapeError, describe
from .._base.garbage import collect
from .._compat import storage_uses
from .comparing import bytes_of, has_same_bits
from .lending import Lending
from .pointers import has_pointers
from .writes import operand_written


def argument_kept(lending: Lending, index: int, is_result: bool, is_late: bool) -> None:
    """Warn or raise: something still refers to an operand or a result buffer. It has other memory by now.

    `is_late` says that earlier calls, which were not checked, may have kept something too.
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
    if "keeps state" in lending.noted:  # inference has warned of it
        return
    lending.warn_once(
        f"{name} keeps {path}, or something that refers to it, beyond the call. What it keeps has memory of its own, "
        "and from now on the function gets a copy of that argument at every call. Keep `tensor.clone()` instead, or "
        'wrap the function with `arguments="copy"` if this is meant.'
        + (" DLPack capsules that earlier calls have kept cannot be found, and must not be read." if is_late else ""),
        T2jWarning,
        f"kept {path}",
    )


def check_example(
    lending: Lending, index: int, twin: torch.UntypedStorage, original: torch.Tensor, uses: int | None
) -> None:
    """Raise if a function has written into an example of a batch, or keeps it. It got a copy in `twin`.

    For sister packages whose batches hand out examples: calls here lend whole operands, which the native part checks.
    `uses` is how many tensors may refer to the memory of the copy; None if that is not known.
    """
    if not has_same_bits(twin, original.detach().clone().untyped_storage()):
        operand_written(lending, index, is_private=True, has_lent=False)
    if uses is not None and storage_uses(twin) > uses:
        collect_garbage()
        if storage_uses(twin) > uses:
            argument_kept(lending, index, is_result=False, is_late=False)


_held: collections.deque[object] = collections.deque(maxlen=16)


def hold(arguments: object) -> None:
    """Keep the arguments of an eager call that raised `TensorEscapeError` alive, those of the last 16 such calls.

    What still refers to their memory, as a NumPy array does, could not be given other memory.
    """
    _held.append(arguments)


def collect_garbage() -> None:
    """Free what is garbage, and torch's cache of casts.

    Inside an autocast of the caller, an autocast in the function adds its casts to a cache that torch empties when the
    outermost one ends (`autocast.__exit__` in torch/amp/autocast_mode.py). Their graphs refer to arguments.
    """
    torch.clear_autocast_cache()
    collect()


def operand_in_cycle(lending: Lending, index: int) -> None:
    """Copy an operand from now on, because calls leave it in a reference cycle or in torch's cache of casts."""
    lending.copy_from_now_on(index, "the function leaves it to the garbage collector")


def movable_copy(
    can_move: bool, lending: Lending, index: int, is_result: bool, storage: torch.UntypedStorage
) -> torch.UntypedStorage:
    """A copy of lent memory that something still refers to, for the native part to exchange the two.

    Raises `TensorEscapeError` if something refers to the address itself, as a NumPy array does. `can_move` says whether
    this torch lets memory be exchanged.
    """
    if not can_move or has_pointers(storage):
        path = lending.path(index, is_result=is_result)
        if not is_result:
            lending.copy_from_now_on(index, "the function keeps it")
        raise _escaped(lending.name, path, "outputs" if is_result else "arguments")
    data = torch.empty(storage.nbytes(), dtype=torch.uint8, device=storage.device)
    data.copy_(bytes_of(storage))
    return data.untyped_storage()


def raise_escaped(lending: Lending) -> NoReturn:
    """Raise for memory that is still lent after the call, and that no tensor leads to."""
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
