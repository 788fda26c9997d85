"""The pullback of a pushforward, from reverse mode alone.

Torch's formulas of forward mode are seldom right where they are differentiated: what an operation saved (a mean, a
factorisation) counts as constant. With P(x, u) = J(x) u and Q(x, r) = transpose of J(x) times r, the sums of r P(x, u)
and of u Q(x, r) are the same number. So the cotangent of x for r is the pullback of Q at the cotangent u, and that of u
is Q(x, r).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from t2j_core.extend import Leaf

from .. import _compat
from .._base.errors import OUT_OF_MEMORY
from .reverse_mode import Flat, Tensors, vjp


class Adjoint:
    """The pullback of `push`, a function of `n` operands and tangents, whose transpose is `pull`."""

    def __init__(self, push: Flat, pull: Flat, n: int, results: Sequence[Leaf]) -> None:
        self.push, self.pull, self.n, self.results = push, pull, n, results
        self.is_missing = False  # reverse mode cannot be differentiated where forward mode can

    def __call__(self, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor]) -> Tensors:
        """The cotangents of the inputs `ins`, as from `vjp`."""
        if not self.is_missing:
            try:
                return self._from_pullback(x, ins, cotangents)
            except OUT_OF_MEMORY:
                raise
            except Exception:
                if _compat.in_transform():  # where it may fail for other reasons: the batch runs in turn then
                    raise
                answer = self._from_torch(x, ins, cotangents)
            self.is_missing = True
            return answer
        return self._from_torch(x, ins, cotangents)

    def _from_torch(self, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor]) -> Tensors:
        return vjp(self.push, x, ins, cotangents, linear=range(self.n, len(x)))

    def _from_pullback(self, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor]) -> Tensors:
        n, given = self.n, [self._cotangent(k, cotangents, x[0].device) for k in range(len(self.results))]
        operands = [i for i in ins if i < n]
        found: dict[int, torch.Tensor] = {}
        if operands:
            linear = range(n, n + len(given))
            pulled = vjp(self.pull, (*x[:n], *given), operands, dict(enumerate(x[n:])), linear=linear)
            found.update(zip(operands, pulled, strict=True))
        if len(operands) < len(ins):
            found.update(enumerate(self.pull(*x[:n], *given), n))
        return tuple(found[i] for i in ins)

    def _cotangent(self, k: int, cotangents: Mapping[int, torch.Tensor], device: torch.device) -> torch.Tensor:
        if k in cotangents:
            return cotangents[k]
        return torch.zeros(self.results[k].shape, dtype=self.results[k].torch_dtype, device=device)
