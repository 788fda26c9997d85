"""Forward mode of flat torch functions: `torch.func.jvp`, and what takes its place where torch has none or a wrong one.

The pullback is linear in the cotangent, and the transpose of the transpose is the pushforward. So the pullback is the
judge: at the first run of a function, for tangents t, a random cotangent r and g = pullback(r), the tangents dy of the
outputs must satisfy sum(g t) = sum(r dy). `torch.func.jvp` loses tangents without a word in some operations, where a
function looks at `requires_grad`, and where what an operation saved for its derivative is differentiated once more.
Then the pullback is transposed. Inside `torch.func.vmap` nothing can be compared, so one example of a batch is run
alone before (`rehearse`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from t2j_core.extend import as_written

from .. import _compat
from .._base.errors import OUT_OF_MEMORY, NonDifferentiableError
from .._mends.faithful_forward_mode import faithful_forward_mode
from .agreement import LARGER, SCALE, RandomState, Sides, agree, is_proportional, is_telling, may_be_rounding
from .forward_level import in_forward_level
from .plain_operations import one_at_a_time
from .pushforward import Pushforward
from .reverse_mode import Tensors, first_line, refuse_constant, watched
from .tangents_by_reverse import ReverseMode

_CHECKS = 3  # how many runs are compared at most: one, unless it says nothing because all is zero


@dataclass(eq=False)
class ForwardMode:
    """How forward mode of one function is computed, and why. `report` is told each time that changes."""

    report: Callable[[str], None]
    failure: str | None = None  # why `torch.func.jvp` is not used
    rows_because: str | None = None  # why the pullback is not transposed either
    checks: int = 0  # how many runs were compared with reverse mode
    is_confirmed: bool = False  # one of them showed that it is right

    @property
    def is_settled(self) -> bool:
        """Whether it is known which way to go."""
        return self.failure is not None or self.is_confirmed or self.checks >= _CHECKS

    def use_reverse_mode(self, failure: str) -> None:
        """Do without `torch.func.jvp` from now on."""
        self.failure = failure
        self._tell()

    def use_rows(self, reason: str) -> None:
        """Compute rows of the Jacobian from now on."""
        self.rows_because = reason
        self._tell()

    def _tell(self) -> None:
        if self.failure is not None:
            how = "transposed reverse mode" if self.rows_because is None else "rows of the Jacobian"
            reasons = (self.failure, self.rows_because)
            self.report(f"{how} ({'; '.join(reason for reason in reasons if reason is not None)})")


def jvp(push: Pushforward, known: ForwardMode) -> tuple[torch.Tensor, ...]:
    """The tangents of the outputs."""
    with one_at_a_time, as_written(), _compat.math_attention():
        _compat.prepare_forward_mode()
        return _in_transform(push, known) if _compat.in_transform() else _alone(push, known)


def rehearse(push: Pushforward, known: ForwardMode) -> None:
    """Find out which way to go at one example of a batch, in a direction in which all inputs move."""
    if not known.is_settled:
        jvp(push.in_all_directions(), known)


def _in_transform(push: Pushforward, known: ForwardMode) -> tuple[torch.Tensor, ...]:
    if known.rows_because is not None:
        raise NonDifferentiableError(f"PyTorch has no forward mode here ({known.failure}).")
    return _forward(push)[0] if known.failure is None else push.transposed()


def _alone(push: Pushforward, known: ForwardMode) -> tuple[torch.Tensor, ...]:
    failure: tuple[type, str, str] | None = None  # not the exception, whose frames hold the arguments
    dy: tuple[torch.Tensor, ...] | None = None
    if known.failure is None:
        try:
            dy = _checked(push, known)
        except OUT_OF_MEMORY:  # the other ways take more
            raise
        except _ContradictionError as error:
            if error.is_chosen or _has_own_jvp(push):  # the user's choice, whatever the backward says
                known.is_confirmed = True
                return error.tangents
            failure = NonDifferentiableError, str(error), str(error)
            dy = error.tangents if error.is_small else None
        except Exception as error:
            failure = type(error), str(error), first_line(error)
        if failure is None:
            return dy  # type: ignore[return-value]
    try:
        pushed = _from_reverse_mode(push, known)
    except Exception as error:
        if dy is not None and not isinstance(error, OUT_OF_MEMORY):
            return dy
        refuse_constant(error)
        if failure is None or failure[:2] == (type(error), str(error)):
            raise
        raise _neither(failure[2], first_line(error)) from error
    if failure is not None:
        known.use_reverse_mode(failure[2])
    return pushed


def _neither(forward: str, reverse: str) -> NonDifferentiableError:
    return NonDifferentiableError(
        "PyTorch cannot compute the forward-mode derivative of this function.\n"
        f"  Forward mode failed:     {forward}\n"
        f"  Double backward failed:  {reverse}\n"
        "Use reverse mode (`jax.grad`, `jax.vjp`, `jax.jacrev`), or give the `autograd.Function` a `jvp`."
    )


# --- torch.func.jvp ------------------------------------------------------------------------------------------------


def _forward(push: Pushforward) -> tuple[tuple[torch.Tensor, ...], bool]:
    """The tangents, and whether every output has one."""
    moved, g = push.moved, push.restricted
    tangents = tuple(t.to(m.dtype) for t, m in zip(push.tangents, moved, strict=True))
    have: list[bool] = []

    def run(*moved: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with faithful_forward_mode():
            y = g(*moved)
        have[:] = map(_compat.has_tangent, y)
        return y

    y, dy = in_forward_level(lambda: torch.func.jvp(run, moved, tangents))  # type: ignore[misc]
    # In autocast, torch's norms of bfloat16 with a weight of float32 have tangents of float32 (torch 2.13).
    return tuple(_compat.materialised(d).to(yi.dtype) for yi, d in zip(y, dy, strict=True)), all(have)


class _ContradictionError(Exception):
    """Forward mode has other derivatives than reverse mode."""

    def __init__(self, message: str, tangents: tuple[torch.Tensor, ...], *, is_small: bool, is_chosen: bool) -> None:
        super().__init__(message)
        self.tangents = tangents
        self.is_small = is_small  # no more than rounding might be
        self.is_chosen = is_chosen  # a hook clamps the gradient, so the pullback is not a derivative


def _checked(push: Pushforward, known: ForwardMode) -> tuple[torch.Tensor, ...]:
    """The tangents by `torch.func.jvp`. The first times they are compared with reverse mode."""
    if known.is_settled:
        return _forward(push)[0]
    state = RandomState(push.x[0].device)
    dy, is_complete = _forward(push)
    known.checks += 1
    _compare(push, dy, state, known, is_complete=is_complete)
    return dy


def _compare(
    push: Pushforward, dy: tuple[torch.Tensor, ...], state: RandomState, known: ForwardMode, *, is_complete: bool
) -> None:
    """Raise where the tangents `dy` contradict reverse mode."""
    compared = dy
    if not all(bool(t.all()) for t in push.tangents):
        push = push.in_all_directions()
        with state.again():
            compared = _forward(push)[0]
    try:
        with state.again():
            g = _pulled(push)
    except NonDifferentiableError:  # a backward that is cut off from its gradient
        if is_complete:
            return
        raise
    except Exception:  # torch has no gradient, which could be compared
        return
    sides = (g, push.tangents, [*push.random_cotangents().values()], compared)
    if agree(*sides):
        known.is_confirmed |= is_telling(g, compared)
        return
    with state.again():  # rounding is the same at a power of two
        is_linear = is_proportional(g, _pulled(push, LARGER), LARGER)
    if is_linear and _is_rounding(push, sides, lambda push: _forward(push)[0], state):
        known.is_confirmed |= is_telling(g, compared)
        return
    lost = "has other derivatives than" if is_complete else "lacks derivatives of"
    raise _ContradictionError(
        f"Forward mode {lost} reverse mode.",
        dy,
        is_small=is_linear and agree(*sides, loosely=True),
        is_chosen=is_complete and not is_linear,
    )


def _pulled(push: Pushforward, scale: float = 1.0) -> Tensors:
    """The pullback of a random cotangent."""
    there = push.at([t.detach() for t in push.x])
    return there.pull({i: scale * t for i, t in push.random_cotangents().items()})


def _is_rounding(
    push: Pushforward, sides: Sides, forward: Callable[[Pushforward], Tensors], state: RandomState
) -> bool:
    """Whether what differs is lost anew where tangents and cotangents are scaled."""
    with state.again():
        dy = forward(replace(push, tangents=[SCALE * t for t in push.tangents]))
    with state.again():
        g = _pulled(push, SCALE)
    return may_be_rounding(sides, (g, *sides[1:3], dy))


def _has_own_jvp(push: Pushforward) -> bool:
    """Whether an `autograd.Function` says itself what its forward mode is."""
    with torch.enable_grad():
        y = push.f(*watched([t.detach() for t in push.x], push.ins))
    return _compat.has_own_jvp(y[i] for i in push.outs)


# --- reverse mode --------------------------------------------------------------------------------------------------


def _from_reverse_mode(push: Pushforward, known: ForwardMode) -> tuple[torch.Tensor, ...]:
    if push.adjoint is not None:
        return _checked_transpose(push, known)
    dy, reason = ReverseMode(push).tangents_of_outputs(use_rows=known.rows_because is not None)
    if reason is not None:
        known.use_rows(reason)
    return dy


def _checked_transpose(push: Pushforward, known: ForwardMode) -> tuple[torch.Tensor, ...]:
    """The transpose of an adjoint, compared with it at the first run."""
    state = RandomState(push.x[0].device)
    dy = push.transposed()
    if known.failure is None:
        with state.again():
            g = _pulled(push)
        sides = (g, push.tangents, [*push.random_cotangents().values()], dy)
        if not agree(*sides, loosely=True) and not _is_rounding(push, sides, Pushforward.transposed, state):
            raise NonDifferentiableError("The derivative of the backward contradicts the backward (`detach`, NumPy).")
    return dy
