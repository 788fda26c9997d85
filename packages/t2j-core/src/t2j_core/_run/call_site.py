"""What a call site of a compiled program is built from, as the native part reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .lending import Handover, Lending


class BufferSpec(NamedTuple):
    """An operand or a result of a call site. `read_operand` in `native/site.cc` reads the fields in this order."""

    dtype: str
    """The dtype of XLA's buffer by its short name, such as `"f32"`. `native/frame.cc` has the list."""
    code: int
    """DLPack's type code of the tensor over the buffer."""
    bits: int
    """DLPack's number of bits of an element of that tensor."""
    shape: tuple[int, ...]
    """The shape of the buffer and of the tensor."""
    handover: Handover
    """`BORROW` for a result."""


class CallSite(NamedTuple):
    """What a call site of a compiled program runs. `read_site` in `native/site.cc` reads the fields in this order."""

    target: Callable[..., Any]
    """Takes one tensor per operand, and per result if `pass_results`. Returns a tuple of tensors, or one tensor."""
    signature: Any
    """The `Signature`, or what stands for it. The native part only passes it to hooks."""
    lending: Lending
    """The native part only passes it to hooks."""
    operands: tuple[BufferSpec, ...]
    """In the order of the custom call."""
    results: tuple[BufferSpec, ...]
    """In the order of the custom call."""
    returns_tensor: bool
    """Whether `target` returns one tensor, not a tuple."""
    pass_results: bool
    """Whether `target` takes tensors over the result buffers."""
    may_keep_results: bool
    """Whether it takes them without the user's function knowing, which may then keep one."""
    checks_always: bool
    """Whether each call, not only some, is checked for operands that it writes or keeps."""
    takes_turns: bool
    """Whether it runs beside no other such call on a CPU, see `native/turn.h`."""
    may_repeat: bool
    """Whether a call that ran out of memory, because operands were copied, may run again without copies."""
