"""`Call`: a function and the arguments of a call whose outputs are to be inferred."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from .._signature.array_names import named_avals
from .._signature.call_tree import CallTree
from .._signature.signature import Leaf


@dataclasses.dataclass(frozen=True)
class Call:
    """The user's function and the signature of its arguments; the outputs are not known yet."""

    fn: Callable[..., Any]
    name: str
    call_tree: CallTree
    operands: Sequence[Leaf]

    @property
    def nbytes(self) -> int:
        """Size of all operands in bytes."""
        return sum(leaf.nbytes for leaf in self.operands)

    def named_avals(self) -> str:
        """The first operands by their names."""
        return named_avals(self.call_tree, self.operands)

    def with_function(self, fn: Callable[..., Any]) -> Call:
        """The same call of another function."""
        return dataclasses.replace(self, fn=fn)
