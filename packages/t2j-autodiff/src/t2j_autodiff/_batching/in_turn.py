"""A batch as one example after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from t2j_core.extend import FlatFunction, InTurnError, Lending, check_example, is_traced_ahead, storage_uses

from .. import _compat
from .._base.decisions import BatchKind, Decisions
from .at_once import kind_of_run
from .batch_axes import Dims


class InTurn:
    """`f` for `size` examples, one after another; every result has the examples along axis 0.

    `why` is for `explain()`.
    """

    def __init__(
        self, f: FlatFunction, size: int, dims: Dims, decisions: Decisions, kind: BatchKind, why: str = ""
    ) -> None:
        self.f, self.size, self.dims, self.decisions = f, size, dims, decisions
        self.kind, self.why = kind, why

    def __call__(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.run(x, self.why)

    def run(self, x: Sequence[torch.Tensor], why: str) -> tuple[torch.Tensor, ...]:
        """Run the examples, for the reason `why`."""
        explanation = kind_of_run(self.kind, x), self.size, f"examples one after another{why}"
        if is_traced_ahead():  # as many times the operations of one
            self.decisions.explain_batch(*explanation)
            raise InTurnError
        rows = [self._run(x, i) for i in range(self.size)]
        self.decisions.explain_batch(*explanation)
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))

    def _run(self, x: Sequence[torch.Tensor], i: int) -> tuple[torch.Tensor, ...]:
        # A copy, not a view: some operations ignore `storage_offset` and read from the start of the memory.
        example = [t if d is None else t[i].clone() for t, d in zip(x, self.dims, strict=True)]
        lending = self.decisions.lending
        if lending is None or _compat.in_transform():
            return self.f(*example)
        return self._checked(lending, x, i, example)

    def _checked(
        self, lending: Lending, x: Sequence[torch.Tensor], i: int, example: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """As `f(*example)`, checked as a call is: `f` may neither write into an example nor keep it."""
        is_watched = [t.requires_grad for t in example]
        copies = [t.untyped_storage() for t in example]
        uses = list(map(storage_uses, copies))
        y = self.f(*example)
        example.clear()
        own = {t.untyped_storage()._cdata for t in y}  # results may lie in the memory of an example
        for k in range(len(self.decisions.paths)):
            if self.dims[k] is not None:  # the call itself checks what has no batch axis
                counts = not is_watched[k] and copies[k]._cdata not in own
                check_example(lending, k, copies[k], x[k][i], uses[k] - 1 if counts else None)
        return y
