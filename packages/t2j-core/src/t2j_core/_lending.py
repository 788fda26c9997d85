"""How operands are handed over, and what calls have shown about it: the hooks of the native part that watch memory.

An argument is lent: the tensor lies over XLA's buffer. In the calls 1, 2, 4, 8, ... of a program it is a copy, which
is compared afterwards. A function that writes into an argument or keeps one gets a copy at every call from then on, so
that neither XLA's memory nor what the function kept is touched by the other side.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ._compat import storage_uses, with_foreign_memory
from ._errors import PerformanceWarning, T2jWarning, TensorEscapeError, TensorMutationError, describe, warn
from ._garbage import collect
from ._pointers import has_pointers
from ._signature import Signature

BORROW, CLONE, MUTABLE = 0, 1, 2  # how an operand is handed over; `native/site.h` has the same numbers


class Lending:
    """How the operands of one function are handed over, and what calls have shown about it."""

    def __init__(self, signature: Signature, passes: Sequence[int] | None, arguments: str, told: set[str]) -> None:
        self.signature = signature
        self.name: str = signature.name  # what the user calls the function, as below the operands
        self.paths: tuple[str, ...] = ()
        self.arguments = arguments
        self.told = told  # the warnings that the user's function has had; its derived functions share it
        self.reasons: dict[int, str] = {}  # why an operand is copied, where a call has shown it
        self._passes = list(passes or (BORROW,) * len(signature.operands))
        if arguments == "copy":
            self._passes = [CLONE if how == BORROW else how for how in self._passes]

    def speaks_of(self, source: Lending) -> None:
        """Let messages name the function that this one is derived from, and its operands."""
        self.name, self.paths = source.name, source.paths or tuple(source.signature.operand_paths())

    def of(self, signature: Any) -> Lending:
        """The same, with another object in the place of the signature."""
        other = copy.copy(self)
        other.signature = signature
        return other

    @property
    def passes(self) -> tuple[int, ...]:
        """How each operand is handed over."""
        return tuple(self._passes)

    def copy_from_now_on(self, index: int, reason: str) -> None:
        """Hand over copies of an operand. Programs that run already learn it by themselves."""
        if self.arguments != "check":
            self._passes[index] = CLONE
            self.reasons[index] = reason

    def path(self, index: int, *, is_result: bool = False) -> str:
        """The user's name of an operand or a result."""
        if index < len(self.paths) and not is_result:
            return self.paths[index]
        signature = self.signature
        return (signature.outputs.paths() if is_result else signature.operand_paths())[index]

    def warn_once(self, message: str, category: type[Warning], topic: str) -> None:
        """Warn, unless the user's function has had this warning."""
        if topic not in self.told:
            self.told.add(topic)
            warn(message, category)


def private_copy(tensor: torch.Tensor) -> torch.Tensor | None:
    """A copy for a call that is checked; None if memory is short. As a lent tensor's, its memory cannot be resized."""
    try:
        return with_foreign_memory(tensor.clone())
    except torch.OutOfMemoryError:
        return None


# --- operands that are written ------------------------------------------------------------------------------------


Memory = torch.Tensor | torch.UntypedStorage


def has_same_bits(first: Memory, second: Memory) -> bool:
    """Whether a copy still holds what the operand holds, or one digest what another does. On a GPU this waits."""
    one, other = _bytes_of(first), _bytes_of(second)
    return bool(_are_same(one, other)) if one.is_cuda else torch.equal(one, other)


class _Comparison(NamedTuple):
    """Comparisons that a GPU makes."""

    operands: list[tuple[int, bool]]
    are_same: torch.Tensor  # bool, one for each operand, in memory of the host
    done: torch.cuda.Event


def compare_later(pairs: Sequence[tuple[int, bool, Memory, Memory]]) -> _Comparison:
    """Let the GPU compare pairs of memory, each of an operand, behind the work of the call.

    With each operand comes whether the call got a private copy of it.
    """
    found = [_are_same(_bytes_of(first), _bytes_of(second)) for *_, first, second in pairs]
    are_same = torch.empty(len(found), dtype=torch.bool, pin_memory=True)
    are_same.copy_(torch.stack(found), non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return _Comparison([(operand, is_private) for operand, is_private, *_ in pairs], are_same, done)


_BLOCK = 1 << 24


def _are_same(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """As `torch.equal`, which returns a `bool` and therefore waits, and needs as much memory again on a GPU."""
    if first.shape != second.shape:
        return torch.zeros((), dtype=torch.bool, device=first.device)
    blocks = zip(first.split(_BLOCK), second.split(_BLOCK), strict=True)
    return torch.stack([(a == b).all() for a, b in blocks]).all()


def differing(comparison: _Comparison) -> tuple[tuple[int, bool], ...] | None:
    """The operands whose bytes differ, as they came; None while the GPU has not come so far."""
    if not comparison.done.query():
        return None
    pairs = zip(comparison.operands, comparison.are_same.tolist(), strict=True)
    return tuple(operand for operand, is_same in pairs if not is_same)


def _bytes_of(memory: Memory) -> torch.Tensor:
    storage = memory if isinstance(memory, torch.UntypedStorage) else memory.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


_WORDS = 1 << 21


def digest(tensor: torch.Tensor) -> torch.Tensor:
    """Numbers that tell whether the bytes of a tensor change, and where they move. For operands too large to copy."""
    data = _bytes_of(tensor)
    end = len(data) // 8 * 8
    weights = torch.arange(1, 2 * _WORDS, 2, device=data.device)  # odd, so that no bit of a word is lost
    sums = [_weighted(words, weights[: len(words)]) for words in data[:end].view(torch.int64).split(_WORDS)]
    rest = data[end:].to(torch.int64)
    return torch.cat([torch.stack(sums), rest]) if sums else rest


def _weighted(words: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The sum of products of integers, in which overflow does no harm. Torch has no such `dot` for GPUs."""
    return torch.dot(words, weights) if words.device.type == "cpu" else (words * weights).sum()


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
