"""Whether tangents agree with reverse mode: the dot-product test, at the first runs of a function.

The pullback is linear in the cotangent, and the transpose of the transpose is the pushforward. So the pullback is the
judge, at a random cotangent. `torch.func.jvp` silently loses tangents in some operations, where a function looks at
`requires_grad`, and where what an operation has saved for its derivative is differentiated once more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from .. import _compat
from .._base.errors import NonDifferentiableError
from .dot_product_test import LARGER, SCALE, Sides, agree, is_proportional, is_telling, may_be_rounding
from .flat_functions import Tensors, requiring_grad
from .jvp_decision import JvpDecision
from .pushforward import Pushforward
from .random_state import RandomState
from .torch_jvp import torch_jvp


class ContradictionError(Exception):
    """Forward mode has other derivatives than reverse mode."""

    def __init__(self, message: str, tangents: tuple[torch.Tensor, ...], *, is_small: bool, is_chosen: bool) -> None:
        super().__init__(message)
        self.tangents = tangents
        self.is_small = is_small  # no more than rounding might be
        self.is_chosen = is_chosen  # a hook clamps the gradient, so the pullback is not a derivative


def checked_jvp(pushforward: Pushforward, decision: JvpDecision) -> tuple[torch.Tensor, ...]:
    """The tangents by `torch.func.jvp`. Raises `ContradictionError` where they contradict reverse mode."""
    if decision.is_settled:
        return torch_jvp(pushforward).tangents
    state = RandomState(pushforward.x[0].device)
    _, dy, is_complete = torch_jvp(pushforward)
    decision.checks += 1
    _compare(pushforward, dy, state, decision, is_complete=is_complete)
    return dy


def _compare(
    pushforward: Pushforward,
    dy: tuple[torch.Tensor, ...],
    state: RandomState,
    decision: JvpDecision,
    *,
    is_complete: bool,
) -> None:
    compared = dy
    if not all(bool(t.all()) for t in pushforward.tangents):
        pushforward = pushforward.in_all_directions()
        with state.again():
            compared = torch_jvp(pushforward).tangents
    try:
        with state.again():
            g = _random_pullback(pushforward)
    except NonDifferentiableError:  # a backward that is cut off from its gradient
        if is_complete:
            return
        raise
    except Exception:  # torch has no gradient that could be compared
        return
    sides = (g, pushforward.tangents, [*pushforward.random_cotangents().values()], compared)
    if agree(*sides):
        decision.is_confirmed |= is_telling(g, compared)
        return
    with state.again():  # rounding is the same at a power of two
        is_linear = is_proportional(g, _random_pullback(pushforward, LARGER), LARGER)
    if is_linear and _is_rounding(pushforward, sides, lambda pushforward: torch_jvp(pushforward).tangents, state):
        decision.is_confirmed |= is_telling(g, compared)
        return
    lost = "has other derivatives than" if is_complete else "lacks derivatives of"
    raise ContradictionError(
        f"Forward mode {lost} reverse mode.",
        dy,
        is_small=is_linear and agree(*sides, loosely=True),
        is_chosen=is_complete and not is_linear,
    )


def checked_transpose(pushforward: Pushforward, decision: JvpDecision) -> tuple[torch.Tensor, ...]:
    """The tangents by the transpose of the pullback, compared with the pullback at the first run."""
    state = RandomState(pushforward.x[0].device)
    dy = pushforward.transposed()
    if decision.failure is None:
        with state.again():
            g = _random_pullback(pushforward)
        sides = (g, pushforward.tangents, [*pushforward.random_cotangents().values()], dy)
        if not agree(*sides, loosely=True) and not _is_rounding(pushforward, sides, Pushforward.transposed, state):
            raise NonDifferentiableError("The derivative of the backward contradicts the backward (`detach`, NumPy).")
    return dy


def has_own_jvp(pushforward: Pushforward) -> bool:
    """Whether an `autograd.Function` of the user's defines forward mode, which then counts, whatever its backward."""
    with torch.enable_grad():
        y = pushforward.f(*requiring_grad([t.detach() for t in pushforward.x], pushforward.ins))
    return _compat.has_own_jvp(y[i] for i in pushforward.outs)


def _random_pullback(pushforward: Pushforward, scale: float = 1.0) -> Tensors:
    """The pullback of a random cotangent."""
    there = pushforward.at([t.detach() for t in pushforward.x])
    return there.pullback({i: scale * t for i, t in pushforward.random_cotangents().items()})


def _is_rounding(
    pushforward: Pushforward, sides: Sides, compute: Callable[[Pushforward], Tensors], state: RandomState
) -> bool:
    """Whether the difference changes as rounding does where tangents and cotangents are scaled."""
    with state.again():
        dy = compute(replace(pushforward, tangents=[SCALE * t for t in pushforward.tangents]))
    with state.again():
        g = _random_pullback(pushforward, SCALE)
    return may_be_rounding(sides, (g, *sides[1:3], dy))
