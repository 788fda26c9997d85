"""`Hooks`: the Python objects that the native part uses, as `native/hooks.h` lists them."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .._run.call_site import CallSite
from .._run.capture import CapturedTarget
from .._run.comparing import Comparison, Memory
from .._run.lending import Lending
from .._run.streams import Entered
from .._signature.signature import Signature


@dataclass(frozen=True)
class Hooks:
    """The Python objects that the native part uses.

    The native part calls every hook with the GIL held, on the thread on which XLA runs the call: the caller's own, or
    one of XLA's. That thread may be inside of other calls. Tensors over memory of XLA are called *lent*; a hook that
    takes one must not keep it. Where nothing else is said, a hook that raises fails the call with its exception.
    """

    exchange: Any
    """Torch's table of DLPack functions, a capsule. None before torch 2.10: then capsules of tensors take its place."""
    version: types.GetSetDescriptorType
    """`Tensor._version`. Read after each call, of each operand that was lent: it is not zero if torch has written."""
    tensor_type: type[torch.Tensor]
    """Results of this class, and no subclass, are read without a hook."""
    parameter_type: type[torch.nn.Parameter]
    """As `tensor_type`."""
    out_of_memory_error: type[torch.OutOfMemoryError]
    """A checked call on a GPU that fails with it runs again without private copies."""
    from_dlpack: Callable[[Any], torch.Tensor]
    """Makes a lent tensor from a capsule. Called only without `exchange`, for each tensor that is lent."""
    to_dlpack: Callable[[torch.Tensor], Any]
    """Makes a capsule that tells where a result is. Called only without `exchange`. Raises: `check_output` decides."""
    is_conj: Callable[[torch.Tensor], bool]
    """Whether a complex result is a lazily conjugated view. Raises: counts as False."""
    is_neg: Callable[[torch.Tensor], bool]
    """Whether a result is a lazily negated view. Raises: counts as False."""
    clone: Callable[[torch.Tensor], torch.Tensor]
    """Copies a lent operand that the function may write; or a result that lies in a result buffer of XLA."""
    copy: Callable[[torch.Tensor, torch.Tensor], None]
    """Copies a result, the second, into a lent result buffer, the first. On a GPU it need not wait."""
    copy_all: Callable[[list[torch.Tensor], list[torch.Tensor]], None]
    """As `copy`, for several small results on a GPU."""
    storage: Callable[[torch.Tensor], torch.UntypedStorage]
    """The memory behind a tensor, lent or not. Raises for a tensor without memory, which is then not watched."""
    storage_uses: Callable[[torch.UntypedStorage], int]
    """How many owners memory has. Called after the function returned. Raises: counts as one, which is not kept."""
    is_grad_enabled: Callable[[], bool]
    """Whether grad mode is on for this thread. Called before and after the function. Raises: counts as False."""
    set_grad_enabled: Callable[[bool], None]
    """Turns grad mode on again for this thread, if the function left it off. What it raises is ignored."""
    state_getters: tuple[Callable[[], object], ...]
    """Called before the function, until one returns a true value or raises: then `enter_state` is called."""
    enter_state: Callable[[bool, Signature], Any]
    """Sets torch's default state for this thread. Called if it is not set, or if this is the first call (the bool)."""
    leave_state: Callable[[Any], None]
    """Undoes `enter_state`, whose result it takes. Called after the call, also one that failed; see `leave_stream`."""
    enter_stream: Callable[[int, int], Entered]
    """Makes XLA's stream, at an address, torch's current one on a device. Called before each call on a GPU."""
    leave_stream: Callable[[Entered], None]
    """Undoes `enter_stream`. If it raises, and the call itself has not failed, the call fails."""
    enter_capture: Callable[[CapturedTarget, int, int], contextlib.ExitStack]
    """As `enter_stream`, for a call that XLA may be capturing."""
    leave_capture: Callable[[contextlib.ExitStack], None]
    """Undoes `enter_capture`. If it raises, and the call itself has not failed, the call fails."""
    warm_up: Callable[[CapturedTarget, int], tuple[int, ...]]
    """Runs a target that may be captured on zeros, once on each device, inside `enter_stream`: the operands to copy."""
    resolve: Callable[[int, str, bool], CallSite]
    """Finds what a call site runs, by the program's attributes `id` and `call`. Called once for each executable.

    The bool says that XLA may capture its calls.
    """
    check_output: Callable[[Signature, int, object, int, int], torch.Tensor]
    """Takes a result that is not as declared, its index, and DLPack's device. Raises, or returns what `copy` takes."""
    refuse_results: Callable[[Signature, object], None]
    """Takes what the function returned instead of the declared number of results. Always raises."""
    report: Callable[[Signature | None, BaseException, int], tuple[int, str]]
    """Keeps an exception, and returns XLA's status code and a message. Raises: the status is INTERNAL (13).

    Called at once after the exception, while lent tensors exist; it clears the frames that refer to them. Without a
    signature, the call site could not be built. The number is how many calls this thread is nested in.
    """
    private_copy: Callable[[torch.Tensor], torch.Tensor | None]
    """Copies a lent operand in a checked call, before the function runs. None without memory: `digest` is called."""
    digest: Callable[[torch.Tensor], torch.Tensor]
    """Numbers that differ if a lent operand was written. Called before and after the function, in place of a copy.

    No numbers where there is no memory for them.
    """
    has_same_bits: Callable[[torch.Tensor, Memory], bool]
    """Compares a lent operand with the memory of its private copy, or two digests, after the function. May wait."""
    compare_later: Callable[[list[tuple[int, bool, torch.Tensor, Memory]]], Comparison]
    """As `has_same_bits`, on a GPU, without waiting. For each operand: index, whether it was a copy, both sides."""
    differing: Callable[[Comparison], tuple[tuple[int, bool], ...] | None]
    """What a later call learns from `compare_later`: which operands differ. None: ask again at the next call."""
    operand_written: Callable[[Lending, int, bool, bool], None]
    """Warns or raises for a written operand: its index, whether it was a copy, whether calls before have lent it."""
    argument_kept: Callable[[Lending, int, bool, bool], None]
    """Warns or raises for memory that outlives the call: index, whether of a result, whether calls before have lent it.

    Called after all tensors are dropped and the memory has been moved off XLA's buffers.
    """
    operand_in_cycle: Callable[[Lending, int], None]
    """Notes an operand that only the garbage collector frees, and is copied from now on. What it raises is ignored."""
    movable_copy: Callable[[Lending, int, bool, torch.UntypedStorage], torch.UntypedStorage]
    """Copies lent memory that outlives the call: index, whether of a result. The native part exchanges the two.

    Raises where something refers to the address itself: then the call fails.
    """
    raise_escaped: Callable[[Lending], None]
    """Raises, always, for memory that is still lent after the call and that no tensor leads to."""
    stop_redirecting: Callable[[Callable[..., Any]], None]
    """Lets a target write its outputs to memory of its own from now on, because the function keeps one."""
    collect_garbage: Callable[[], None]
    """Called after all tensors are dropped, if lent memory is still referred to. What it raises is ignored."""
    most_checked_bytes: int
    """How many bytes all running calls together may hold in private copies."""
