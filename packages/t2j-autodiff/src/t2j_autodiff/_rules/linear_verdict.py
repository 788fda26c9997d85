"""Whether a function is linear in some operands, judged on made-up values of the others; the error if it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from t2j_core import TransformError
from t2j_core.extend import TorchFn, apart, describe

from .._base.decisions import Decisions
from .._base.errors import first_line
from .._derivatives.made_up_numbers import definite, general, generator, is_inexact, zeros
from .._linearity.judge import Judge
from .._linearity.reasons import NOT_FINITE, NOT_ITS_ADJOINT
from .function_rules import rules_of


class Verdict(NamedTuple):
    """Whether a function is linear; None where made-up values of its other operands leave that open."""

    is_linear: bool | None
    reason: str = ""
    has_derivative: bool = True  # PyTorch has the derivative of its values


def verdict_on(fn: TorchFn, ins: tuple[int, ...], outs: tuple[int, ...]) -> Verdict:
    """Whether the results `outs` of `fn` are linear in the operands `ins`, found out once."""
    found: Verdict = rules_of(fn).memo.get(("verdict", ins, outs), lambda: _judged(fn, ins, outs))
    return found


def _judged(fn: TorchFn, ins: tuple[int, ...], outs: tuple[int, ...]) -> Verdict:
    """Whether the results `outs` of `fn` are linear in the operands `ins`, on made-up values of the others."""
    operands, results, rules = fn.signature.operands, fn.signature.outputs.leaves, rules_of(fn)
    if not all(is_inexact(leaf.torch_dtype) for leaf in (*(operands[i] for i in ins), *(results[i] for i in outs))):
        return Verdict(False, "PyTorch differentiates floating and complex numbers alone")
    has_others = len(ins) < len(operands)
    reasons = []
    for make in (general, definite) if has_others else (general,):
        draw = generator()
        x = [zeros(leaf) if i in ins else make(leaf, draw) for i, leaf in enumerate(operands)]
        try:
            with apart(rules.decisions.name):
                judge = Judge(rules.flat_function, x, ins, outs, results)
                reason, has_derivative = judge.reason(has_derivative=True, finite_part_first=not has_others)
        except Exception as error:
            if has_others:  # made-up values may be invalid: the first real call decides
                continue
            reason, has_derivative = f"it raises {first_line(error)}", True
        if reason is NOT_FINITE and not has_others:  # no call has other numbers, and the finite ones are linear
            reason = None
        if reason is None:
            return Verdict(True, has_derivative=has_derivative)
        if reason is not NOT_FINITE:
            reasons.append(reason)
    return Verdict(False, reasons[0]) if reasons else Verdict(None)


def not_linear(decisions: Decisions, ins: Sequence[int], reason: str, asked_by: str) -> TransformError:
    """The error for a function that cannot be transposed."""
    says = "whose backward says that it is" if reason is NOT_ITS_ADJOINT else "which is"
    return TransformError(
        describe(
            f"{asked_by} needs the transpose of {decisions.name}, {says} not linear in {names(decisions, ins)}: "
            f"{reason}.",
            expected="a function f with f(0) = 0 whose derivative is the same everywhere, and has a PyTorch backward",
            remedy="Transpose the derivative instead: `jax.vjp` is that of any function, and "
            "`jax.linearize(f, x)[1]` is linear.",
        )
    )


def names(decisions: Decisions, ins: Sequence[int]) -> str:
    """The operands `ins` as the user knows them."""
    return " and ".join(decisions.paths[i] if i < len(decisions.paths) else f"operand {i}" for i in ins)
