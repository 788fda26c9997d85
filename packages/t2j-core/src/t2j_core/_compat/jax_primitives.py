"""What a primitive registers with JAX beyond `jax.interpreters`: effects, dead code, jet, checkify."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core
from jax.extend.core import Primitive
from jax.interpreters import partial_eval

try:
    from jax._src import effects as _effects

    class _SideEffect(_effects.Effect):
        def __str__(self) -> str:
            return "TorchCall"

    for _allowed in ("lowerable", "control_flow_allowed", "custom_derivatives_allowed", "remat_allowed"):
        getattr(_effects, f"{_allowed}_effects").add_type(_SideEffect)
    side_effects: frozenset[Any] = frozenset({_SideEffect()})
except (ImportError, AttributeError):  # JAX may then drop a call whose results are unused; XLA runs all that reach it
    side_effects = frozenset()


# What an executable raises: JAX's fast path turns the error into a plain ValueError (jax 0.10).
XLA_ERRORS: tuple[type[Exception], ...] = (jax.errors.JaxRuntimeError, ValueError)


def register_dce(primitive: Primitive, replace: Callable[[Sequence[bool], Any], tuple[object, int] | None]) -> None:
    """Let `replace(used, fn)` choose a cheaper function where the last results of a call are not used.

    It returns that function and how many results it has, or None.
    """

    def rule(used: Sequence[bool], *rest: Any) -> tuple[list[bool], Any]:
        eqn = rest[-1]  # jax 0.12 passes which inputs are live before it
        if not any(used) and not eqn.effects:
            return [False] * len(eqn.invars), None
        replacement = replace(used, eqn.params["fn"])
        if replacement is not None:
            smaller, count = replacement
            eqn = eqn.replace(params={**eqn.params, "fn": smaller}, outvars=eqn.outvars[:count])
        return [True] * len(eqn.invars), eqn

    partial_eval.dce_rules[primitive] = rule


def register_jet(primitive: Primitive, rule: Callable[..., Any]) -> None:
    """Register `rule` with `jax.experimental.jet`, which raises a bare `KeyError` for a primitive without one."""
    try:
        from jax.experimental import jet
    except ImportError:
        return
    jet.jet_rules[primitive] = rule


class _Named:
    """The attributes of a primitive that checkify reads to describe a NaN."""

    multiple_results = True

    def __init__(self, name: str) -> None:
        self.name = name


def register_checkify(primitive: Primitive, describe: Callable[[Any], tuple[str, int]]) -> None:
    """Let `jax.experimental.checkify` find NaN in the results of calls, as of JAX's own primitives.

    `describe(fn)` returns the name of a call and how many of its results count. Without a rule checkify does not look
    at a primitive.
    """
    try:
        from jax._src.checkify import check_nans, error_checks
    except ImportError:
        return
    # Before the operands of a call: the error so far and the enabled kinds; jax 0.12 has a context in front of them.
    check: Any = check_nans
    head = len(inspect.signature(check).parameters) - 2

    def rule(*given: Any, fn: object) -> tuple[Any, Sequence[Any]]:
        results = primitive.bind(*given[head:], fn=fn)
        name, count = describe(fn)
        return check(_Named(name), *given[:head], results[:count]), results

    error_checks[primitive] = rule
