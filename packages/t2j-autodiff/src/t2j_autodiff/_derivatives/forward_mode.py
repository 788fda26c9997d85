"""Forward mode of flat functions: `torch.func.jvp`, and what takes its place where torch has none or a wrong one.

The first runs are compared with reverse mode (`jvp_checks`). Where the two contradict each other, or torch raises, the
pullback is transposed instead (`jvp_by_reverse_mode`). Inside `torch.func.vmap` nothing can be compared, so one example
of a batch is run alone before (`rehearse`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from t2j_core.extend import describe

from .. import _compat
from .._base.errors import OUT_OF_MEMORY, NonDifferentiableError, first_line
from .decompositions import one_at_a_time
from .flat_functions import Tensors, are_finite
from .jvp_by_reverse_mode import JvpByReverseMode
from .jvp_checks import ContradictionError, checked_jvp, checked_transpose, has_own_jvp
from .jvp_decision import JvpDecision
from .nondifferentiable import refuse_constant
from .pushforward import Pushforward
from .torch_jvp import torch_jvp


def jvp(pushforward: Pushforward, decision: JvpDecision) -> tuple[torch.Tensor, ...]:
    """The tangents of the outputs."""
    with one_at_a_time, _compat.as_written(), _compat.math_attention():
        _compat.prepare_forward_mode()
        return _in_transform(pushforward, decision) if _compat.in_transform() else _alone(pushforward, decision)


def results_and_jvp(pushforward: Pushforward, decision: JvpDecision) -> tuple[Tensors, Tensors] | None:
    """The outputs and their tangents in one run; None where forward mode is not settled, or fails."""
    if not decision.is_settled or decision.failure is not None:
        return None
    with one_at_a_time, _compat.as_written(), _compat.math_attention():
        _compat.prepare_forward_mode()
        try:
            y, dy, _ = torch_jvp(pushforward)
        except OUT_OF_MEMORY:
            raise
        except Exception:  # `jvp` raises it again, or does without forward mode
            return None
    return y, dy


def rehearse(pushforward: Pushforward, decision: JvpDecision) -> None:
    """Decide at one example of a batch, with tangents that move all operands."""
    if not decision.is_settled:
        jvp(pushforward.in_all_directions(), decision)


def _in_transform(pushforward: Pushforward, decision: JvpDecision) -> tuple[torch.Tensor, ...]:
    if decision.rows_because is not None:
        what = f"PyTorch has no forward mode here ({decision.failure})."
        remedy = 'Use `vmap_method="auto"` or `"sequential"`: these examples cannot be batched.'
        raise NonDifferentiableError(describe(what, remedy=remedy))
    return torch_jvp(pushforward).tangents if decision.failure is None else pushforward.transposed()


@dataclass(frozen=True)
class _Failure:
    """Why forward mode is not used. It is not the exception, whose frames hold the arguments."""

    kind: type[Exception]
    text: str
    reason: str  # for `explain()`
    tangents: tuple[torch.Tensor, ...] | None = None  # those of forward mode, if they are about right


def _alone(pushforward: Pushforward, decision: JvpDecision) -> tuple[torch.Tensor, ...]:
    failure: _Failure | None = None
    if decision.failure is None:
        found = _by_forward_mode(pushforward, decision)
        if not isinstance(found, _Failure):
            return found
        failure = found
    try:
        dy = _by_reverse_mode(pushforward, decision)
    except Exception as error:
        if failure is not None and failure.tangents is not None and not isinstance(error, OUT_OF_MEMORY):
            return failure.tangents
        refuse_constant(error)
        if failure is None or (failure.kind, failure.text) == (type(error), str(error)):
            raise
        raise _neither(failure.reason, first_line(error)) from error
    if failure is not None:
        if failure.tangents is not None and are_finite(failure.tangents) and not are_finite(dy):
            return failure.tangents  # torch 2.13: derivatives of the double backward of `logcumsumexp` are NaN
        decision.use_reverse_mode(failure.reason)
    return dy


def _by_forward_mode(pushforward: Pushforward, decision: JvpDecision) -> tuple[torch.Tensor, ...] | _Failure:
    try:
        return checked_jvp(pushforward, decision)
    except OUT_OF_MEMORY:  # the other ways need more
        raise
    except ContradictionError as error:
        if error.is_chosen or has_own_jvp(pushforward):
            decision.is_confirmed = True
            return error.tangents
        text, tangents = str(error), error.tangents if error.is_small else None
        return _Failure(NonDifferentiableError, text, text, tangents)
    except Exception as error:
        return _Failure(type(error), str(error), first_line(error))


def _by_reverse_mode(pushforward: Pushforward, decision: JvpDecision) -> tuple[torch.Tensor, ...]:
    if pushforward.pullback_of_f is not None:
        return checked_transpose(pushforward, decision)
    dy, reason = JvpByReverseMode(pushforward).tangents_of_outputs(use_rows=decision.rows_because is not None)
    if reason is not None:
        decision.use_rows(reason)
    return dy


def _neither(forward: str, reverse: str) -> NonDifferentiableError:
    return NonDifferentiableError(
        "PyTorch cannot compute the forward-mode derivative of this function.\n"
        f"  Forward mode failed:     {forward}\n"
        f"  Double backward failed:  {reverse}\n"
        "Use reverse mode (`jax.grad`, `jax.vjp`, `jax.jacrev`) or other operations, or give an `autograd.Function` "
        "a `jvp`."
    )
