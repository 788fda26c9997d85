"""`Lending`: how the operands of a function are handed over."""

from __future__ import annotations

import copy
import enum
from collections.abc import Sequence
from typing import Any

from .._base.errors import warn
from .._signature.signature import Signature


class Handover(enum.IntEnum):
    """How an operand is handed over to torch. `native/site.h` has the same numbers."""

    BORROW = 0
    """A tensor over XLA's buffer, which must not be written."""
    CLONE = 1
    """A copy, because the function writes into it or keeps it, or because the user asked for it."""
    MUTABLE = 2
    """A tensor over a buffer that becomes a result."""


class Lending:
    """How the operands of one function are handed over, and what calls have shown about it."""

    def __init__(
        self, signature: Signature, handovers: Sequence[Handover] | None, arguments: str, noted: set[str]
    ) -> None:
        self.signature = signature
        self.name: str = signature.name
        """The name in messages: of the user's function, also in what is derived from it."""
        self.paths: tuple[str, ...] = ()
        """The names of the first operands in messages, if they are not those of the signature."""
        self.arguments = arguments
        self.noted = noted
        """What was found about the user's function and warned of (`CallBuilder.noted`). Derived functions share it."""
        self.reasons: dict[int, str] = {}
        """Why an operand is copied, if that became known in a call."""
        self._places: tuple[int, ...] | None = None
        self._handovers = list(handovers or (Handover.BORROW,) * len(signature.operands))
        if arguments == "copy":
            self._handovers = [Handover.CLONE if h == Handover.BORROW else h for h in self._handovers]

    def name_after(self, source: Lending) -> None:
        """Name the function that this one is derived from, and its operands, in messages."""
        self.name, self.paths = source.name, source.paths or tuple(source.signature.operand_paths())

    def of(self, places: tuple[int, ...]) -> Lending:
        """The same for a call that takes only the operands at `places`, by whose order it counts them."""
        other = copy.copy(self)
        other._places = places
        return other

    def strict(self) -> Lending:
        """The same, but what is kept or written is an error at every call."""
        other = copy.copy(self)
        other.arguments = "check"
        return other

    def with_signature(self, signature: Any) -> Lending:
        """The same with another object in place of the signature."""
        other = copy.copy(self)
        other.signature = signature
        return other

    @property
    def handovers(self) -> tuple[Handover, ...]:
        """How each operand is handed over."""
        return tuple(self._handovers)

    def copy_from_now_on(self, index: int, reason: str) -> None:
        """Hand over copies of an operand from now on. In programs that exist already the native part does so itself."""
        index = index if self._places is None else self._places[index]
        if self.arguments != "check":
            self._handovers[index] = Handover.CLONE
            self.reasons[index] = reason

    def path(self, index: int, *, is_result: bool = False) -> str:
        """The user's name of an operand or a result."""
        if self._places is not None and not is_result:
            index = self._places[index]
        if index < len(self.paths) and not is_result:
            return self.paths[index]
        signature = self.signature
        return (signature.outputs.paths() if is_result else signature.operand_paths())[index]

    def warn_once(self, message: str, category: type[Warning], topic: str) -> None:
        """Warn, once for each topic and user's function."""
        if topic not in self.noted:
            self.noted.add(topic)
            warn(message, category)
