"""Whether an operand has the same bytes after a call as before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .._compat import with_foreign_memory


def private_copy(tensor: torch.Tensor) -> torch.Tensor | None:
    """A copy for a checked call; None without enough memory. Like a lent tensor's, its memory cannot be resized."""
    try:
        return with_foreign_memory(tensor.clone())
    except torch.OutOfMemoryError:
        return None


Memory = torch.Tensor | torch.UntypedStorage
"""A tensor that fills its memory, or the memory itself."""


def has_same_bits(first: Memory, second: Memory) -> bool:
    """Whether an operand and its copy, or two digests, have the same bytes. On a GPU this waits."""
    if _is_unknown(first, second):
        return True
    one, other = bytes_of(first), bytes_of(second)
    return bool(_are_same(one, other)) if one.is_cuda else torch.equal(one, other)


class Comparison(NamedTuple):
    """Comparisons that run on a GPU."""

    operands: list[tuple[int, bool]]  # as given to `compare_later`
    are_same: torch.Tensor  # bool, one for each operand, in memory of the host
    done: torch.cuda.Event


def compare_later(pairs: Sequence[tuple[int, bool, Memory, Memory]]) -> Comparison:
    """Have the GPU compare pairs of memory after the work of the call.

    Each is (operand, whether the call got a private copy of it, and the two pieces of memory).
    """
    known = [pair for pair in pairs if not _is_unknown(*pair[2:])]
    found = [_are_same(bytes_of(first), bytes_of(second)) for *_, first, second in known]
    are_same = torch.empty(len(found), dtype=torch.bool, pin_memory=True)
    if found:
        are_same.copy_(torch.stack(found), non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return Comparison([(operand, is_private) for operand, is_private, *_ in known], are_same, done)


def _is_unknown(first: Memory, second: Memory) -> bool:
    """Whether these are two digests, and there was no memory for one of them."""
    return isinstance(second, torch.Tensor) and not (len(first) and len(second))


_BLOCK = 1 << 24


def _are_same(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """As `torch.equal`, which waits for its `bool`, and allocates as much memory again on a GPU."""
    if first.shape != second.shape:
        return torch.zeros((), dtype=torch.bool, device=first.device)
    blocks = zip(first.split(_BLOCK), second.split(_BLOCK), strict=True)
    return torch.stack([(a == b).all() for a, b in blocks]).all()


def differing(comparison: Comparison) -> tuple[tuple[int, bool], ...] | None:
    """The operands whose bytes differ, as given to `compare_later`; None if the GPU has not compared them yet."""
    if not comparison.done.query():
        return None
    pairs = zip(comparison.operands, comparison.are_same.tolist(), strict=True)
    return tuple(operand for operand, is_same in pairs if not is_same)


def bytes_of(memory: Memory) -> torch.Tensor:
    """All bytes of the memory behind a tensor, as a tensor of `uint8`."""
    storage = memory if isinstance(memory, torch.UntypedStorage) else memory.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


_WORDS = 1 << 21


def digest(tensor: torch.Tensor) -> torch.Tensor:
    """Numbers that differ if bytes of a tensor change or change places. For operands that are too large to copy.

    There are none if a GPU has no memory to compute them.
    """
    try:
        return _digest(bytes_of(tensor))
    except torch.OutOfMemoryError:
        return torch.empty(0, dtype=torch.int64, device=tensor.device)


def _digest(data: torch.Tensor) -> torch.Tensor:
    end = len(data) // 8 * 8
    weights = torch.arange(1, 2 * _WORDS, 2, device=data.device)  # odd, so that no bit of a word is lost
    sums = [_weighted(words, weights[: len(words)]) for words in data[:end].view(torch.int64).split(_WORDS)]
    rest = data[end:].to(torch.int64)
    return torch.cat([torch.stack(sums), rest]) if sums else rest


def _weighted(words: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The sum of products of integers, which may overflow. On GPUs `torch.dot` does not take integers."""
    return torch.dot(words, weights) if words.device.type == "cpu" else (words * weights).sum()
