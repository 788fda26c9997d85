"""A pushforward at one point, and its way through reverse mode: the transpose of the pullback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from t2j_core.extend import Leaf

from .agreement import normal
from .reverse_mode import Flat, Tensors, restricted, vjp

Pull = Callable[[Tensors, Sequence[int], Mapping[int, torch.Tensor]], Tensors]
"""(x, ins, cotangents of some outputs) to the cotangents of the inputs `ins`."""


@dataclass(frozen=True, eq=False)
class Pushforward:
    """The tangents of the outputs `outs` of `f` at `x`, as a function of the tangents of the inputs `ins`.

    `linear` are the inputs that `f` is linear in, if it is itself a derivative; see `_differentiate.vjp`. `adjoint` is
    the pullback of `f` where there is a better one than torch's derivative of `f`.
    """

    f: Flat
    x: Tensors
    ins: Sequence[int]
    tangents: Tensors
    outs: Sequence[int]
    results: Sequence[Leaf]
    linear: Sequence[int] = ()
    adjoint: Pull | None = None

    @property
    def moved(self) -> tuple[torch.Tensor, ...]:
        """The inputs that have tangents."""
        return tuple(self.x[i] for i in self.ins)

    @property
    def restricted(self) -> Flat:
        """`f` as a function of `moved` to the outputs `outs`."""
        return restricted(self.f, self.x, self.ins, self.outs)

    @property
    def is_differentiated(self) -> bool:
        """Whether autograd records this."""
        return any(t.requires_grad for t in (*self.x, *self.tangents))

    def at(self, x: Tensors) -> Pushforward:
        """The same at another point."""
        return replace(self, x=x)

    def pull(self, cotangents: Mapping[int, torch.Tensor]) -> Tensors:
        """The cotangents of the inputs `ins`, by reverse mode."""
        if self.adjoint is not None:
            return self.adjoint(self.x, self.ins, cotangents)
        return vjp(self.f, self.x, self.ins, cotangents, linear=self.linear)

    def zero_cotangents(self) -> dict[int, torch.Tensor]:
        """A zero for each of the outputs."""
        leaves, device = {i: self.results[i] for i in self.outs}, self.x[0].device
        return {i: torch.zeros(leaf.shape, dtype=leaf.torch_dtype, device=device) for i, leaf in leaves.items()}

    def random_cotangents(self) -> dict[int, torch.Tensor]:
        """Random numbers for each of the outputs."""
        return {i: normal(zero, i) for i, zero in self.zero_cotangents().items()}

    def in_all_directions(self) -> Pushforward:
        """The same with tangents that are random, so that every input moves."""
        count = len(self.results)  # other numbers than those of the cotangents
        return replace(self, tangents=[normal(t.detach(), count + k) for k, t in enumerate(self.moved)])

    def transposed(self) -> tuple[torch.Tensor, ...]:
        """The tangents, by the transpose of the pullback. Works inside `torch.func.vmap`.

        The pullback is linear in the cotangents, so that any will do but zero (`logcumsumexp` takes their logarithm).
        They are no random numbers, which `torch.func.vmap` may forbid.
        """
        n, somewhere = len(self.x), map(_cosines, self.zero_cotangents().values())
        places = range(n, n + len(self.outs))

        def pulled(*a: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(self.at(a[:n]).pull(dict(zip(self.outs, a[n:], strict=True))))

        weights = dict(enumerate(self.tangents))
        return vjp(pulled, (*self.x, *somewhere), places, weights, linear=places)


def _cosines(like: torch.Tensor) -> torch.Tensor:
    return torch.arange(1.0, 1 + like.numel(), device=like.device).cos().to(like.dtype).reshape(like.shape)
