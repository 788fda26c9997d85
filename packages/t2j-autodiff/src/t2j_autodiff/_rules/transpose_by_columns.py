"""The transpose of a linear function without a derivative, from the columns of its matrix: one run of it for each."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from t2j_core import TransformError
from t2j_core.extend import FlatFunction, Leaf, describe

from .._base.decisions import Decisions
from .._batching.batch_axes import BatchAxes
from .._derivatives.flat_functions import Tensors
from .linear_verdict import names

COLUMNS = 256
"""How many columns the transpose of one call may take."""


def n_columns(operands: Sequence[Leaf]) -> int:
    """How many runs the transpose takes for these linear operands: two per complex number."""
    return sum(math.prod(leaf.shape) * (1 + leaf.torch_dtype.is_complex) for leaf in operands)


def transposed_by_columns(
    f: FlatFunction, x: Tensors, ins: Sequence[int], cotangents: Mapping[int, torch.Tensor], axes: BatchAxes
) -> tuple[torch.Tensor, ...]:
    """The transpose of `f`, a function over batch axes, whose examples all have columns of their own."""
    x = [torch.zeros_like(t) if i in ins else t for i, t in enumerate(x)]

    def product(i: int, direction: torch.Tensor) -> torch.Tensor:
        """The sum of cotangent times column, for each example."""
        y = f(*x[:i], direction.expand(x[i].shape).clone(), *x[i + 1 :])
        terms = [(ct.to(y[o].dtype) * y[o]).flatten(len(axes)).sum(-1) for o, ct in cotangents.items()]
        return torch.stack([t.real if t.is_complex() else t for t in terms]).sum(0)

    return tuple(_cotangent(functools.partial(product, i), x[i], i, axes) for i in ins)


def _cotangent(
    product: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor, i: int, axes: BatchAxes
) -> torch.Tensor:
    """The cotangent of operand `i`. For complex numbers, sum(g t) = sum(r dy) holds for the real parts alone."""
    has_axis = [axis.has(i) for axis in axes]
    lacking = [k for k, has in enumerate(has_axis) if not has]
    shape = like.shape[sum(has_axis) :]

    def column(j: int, weight: complex) -> torch.Tensor:
        direction = torch.zeros(math.prod(shape), dtype=like.dtype, device=like.device)
        direction[j] = weight  # type: ignore[assignment]  # torch's annotation lacks complex numbers
        products = product(direction.view(shape))
        return products.sum(lacking) if lacking else products

    columns = [column(j, 1) for j in range(math.prod(shape))]
    if like.is_complex():
        columns = [torch.complex(real, -column(j, 1j)) for j, real in enumerate(columns)]
    if not columns:
        return torch.zeros_like(like)
    return torch.stack(columns, -1).view(like.shape).to(like.dtype)


def too_many_columns(decisions: Decisions, ins: Sequence[int], count: int) -> TransformError:
    """The error for a function without a derivative that has too many columns."""
    return TransformError(
        describe(
            f"{decisions.name} cannot be transposed: it is linear in {names(decisions, ins)} as far as its values "
            "tell, but PyTorch has no derivative of it (NumPy, `no_grad`, `detach`).",
            expected=f"a derivative, or at most {COLUMNS} numbers that it is linear in",
            got=f"{count} numbers",
            remedy="Write it in PyTorch operations that record gradients, or as an `autograd.Function` whose backward "
            "is the transpose.",
        )
    )
