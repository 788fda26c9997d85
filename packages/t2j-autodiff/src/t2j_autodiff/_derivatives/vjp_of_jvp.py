"""The pullback of a pushforward, from reverse mode alone.

Torch's formulas of forward mode are seldom right where they are differentiated: what an operation has saved (a mean, a
factorisation) counts as constant. With the pushforward P(x, t) = J(x) t and the pullback Q(x, r) = J(x)^T r, the sums
of r P(x, t) and of t Q(x, r) are the same number. So the cotangent of x is the pullback of Q at the cotangent t, and
that of t is Q(x, r).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from t2j_core.extend import FlatFunction, Leaf

from .. import _compat
from .._base.errors import OUT_OF_MEMORY
from .flat_functions import Tensors
from .reverse_mode import vjp


class VjpOfJvp:
    """The pullback of `pushforward`, a function of `n` operands and then tangents, whose transpose is `pullback`."""

    def __init__(self, pushforward: FlatFunction, pullback: FlatFunction, n: int, results: Sequence[Leaf]) -> None:
        self.pushforward, self.pullback, self.n, self.results = pushforward, pullback, n, results
        self.is_missing = False  # torch can differentiate the pushforward, and not the pullback

    def __call__(self, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor]) -> Tensors:
        """The cotangents of the operands `ins`, as from `vjp`."""
        if self.is_missing:
            return self._from_pushforward(x, ins, cotangents)
        try:
            return self._from_pullback(x, ins, cotangents)
        except OUT_OF_MEMORY:
            raise
        except Exception:
            if _compat.in_transform():  # the batch may be at fault; its examples then run one after another
                raise
        result = self._from_pushforward(x, ins, cotangents)  # outside of `except`, whose traceback holds tensors
        self.is_missing = True
        return result

    def _from_pushforward(self, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor]) -> Tensors:
        return vjp(self.pushforward, x, ins, cotangents, linear=range(self.n, len(x)))

    def _from_pullback(self, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor]) -> Tensors:
        n, given = self.n, [self._cotangent(k, cotangents, x[0].device) for k in range(len(self.results))]
        operands = [i for i in ins if i < n]
        found: dict[int, torch.Tensor] = {}
        if operands:
            linear = range(n, n + len(given))
            grads = vjp(self.pullback, (*x[:n], *given), operands, dict(enumerate(x[n:])), linear=linear)
            found.update(zip(operands, grads, strict=True))
        if len(operands) < len(ins):
            found.update(enumerate(self.pullback(*x[:n], *given), n))
        return tuple(found[i] for i in ins)

    def _cotangent(self, k: int, cotangents: Mapping[int, torch.Tensor], device: torch.device) -> torch.Tensor:
        if k in cotangents:
            return cotangents[k]
        return torch.zeros(self.results[k].shape, dtype=self.results[k].torch_dtype, device=device)
