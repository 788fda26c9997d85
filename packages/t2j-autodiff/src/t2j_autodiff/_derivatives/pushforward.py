"""A pushforward at one point, and its way through reverse mode: the transpose of the pullback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from t2j_core.extend import FlatFunction, Leaf

from .flat_functions import Tensors, restricted
from .made_up_numbers import small_normal
from .reverse_mode import Pullback, vjp


@dataclass(frozen=True, eq=False)
class Pushforward:
    """The tangents of the results `outs` of `f` at `x`, from the tangents of the operands `ins`.

    `linear` are the operands that `f` is linear in, if it is itself a derivative; see `reverse_mode.vjp`.
    `pullback_of_f` is given where there is a better pullback than torch's derivative of `f`.
    """

    f: FlatFunction
    x: Tensors
    ins: Sequence[int]
    tangents: Tensors
    outs: Sequence[int]
    results: Sequence[Leaf]
    linear: Sequence[int] = ()
    pullback_of_f: Pullback | None = None

    @property
    def moved(self) -> tuple[torch.Tensor, ...]:
        """The operands that have tangents."""
        return tuple(self.x[i] for i in self.ins)

    @property
    def restricted(self) -> FlatFunction:
        """`f` as a function of `moved` to the results `outs`."""
        return restricted(self.f, self.x, self.ins, self.outs)

    @property
    def is_differentiated(self) -> bool:
        """Whether autograd records this."""
        return any(t.requires_grad for t in (*self.x, *self.tangents))

    def at(self, x: Tensors) -> Pushforward:
        """The same at another point."""
        return replace(self, x=x)

    def pullback(self, cotangents: Mapping[int, torch.Tensor]) -> Tensors:
        """The cotangents of the operands `ins`, by reverse mode."""
        if self.pullback_of_f is not None:
            return self.pullback_of_f(self.x, self.ins, cotangents)
        return vjp(self.f, self.x, self.ins, cotangents, linear=self.linear)

    def zero_cotangents(self) -> dict[int, torch.Tensor]:
        """A zero for each of the outputs."""
        leaves, device = {i: self.results[i] for i in self.outs}, self.x[0].device
        return {i: torch.zeros(leaf.shape, dtype=leaf.torch_dtype, device=device) for i, leaf in leaves.items()}

    def random_cotangents(self) -> dict[int, torch.Tensor]:
        """Random numbers for each of the outputs."""
        return {i: small_normal(zero, i) for i, zero in self.zero_cotangents().items()}

    def in_all_directions(self) -> Pushforward:
        """The same with random tangents, so that every operand moves."""
        count = len(self.results)  # other numbers than those of the cotangents
        return replace(self, tangents=[small_normal(t.detach(), count + k) for k, t in enumerate(self.moved)])

    def transposed(self) -> tuple[torch.Tensor, ...]:
        """The tangents, by the transpose of the pullback. Works inside `torch.func.vmap`.

        The pullback is linear in the cotangents, so it may be transposed at any of them but zero, of which the backward
        of `logcumsumexp` takes the logarithm. They are not random, which `torch.func.vmap` may forbid.
        """
        n, somewhere = len(self.x), map(_cosines, self.zero_cotangents().values())
        places = range(n, n + len(self.outs))

        def pullback(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(self.at(a[:n]).pullback(dict(zip(self.outs, a[n:], strict=True))))

        weights = dict(enumerate(self.tangents))
        return vjp(pullback, (*self.x, *somewhere), places, weights, linear=places)


def _cosines(like: torch.Tensor) -> torch.Tensor:
    return torch.arange(1.0, 1 + like.numel(), device=like.device).cos().to(like.dtype).reshape(like.shape)
