"""A forward and its pushforward as one call, where a program runs both at the same operands.

`jax.jvp` binds two calls, because reverse mode needs them apart. Only when a program is lowered it is known that nobody
transposes the second. By then JAX refers to the results of the first. So these go through operations that do nothing,
which move behind the joined call if nothing uses them yet. XLA drops the first call unless something else uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import _compat
from .._run.torch_fn import TorchFn
from .native import TARGET


def lowered_jointly(
    ctx: _compat.mlir.LoweringRuleContext,
    operands: Sequence[_compat.mlir.ir.Value[Any]],
    fn: TorchFn,
    lower: Callable[..., Sequence[Any]],
) -> Sequence[Any] | None:
    """The results of a call of `fn`, lowered together with the call that makes its ticket; None if that cannot be.

    `lower` is the lowering rule.
    """
    if fn.ticket is None or _compat.is_exporting(ctx) or (joined := fn.rules.with_results(fn=fn)) is None:
        return None
    first = _compat.making_call(operands[fn.ticket], TARGET)
    if first is None or list(first.operands) != list(operands[: fn.ticket]):
        return None
    leaves = joined.signature.outputs.leaves
    count = len(leaves) - len(fn.signature.outputs.leaves)
    unused = _compat.Unused.of(first, count)
    if unused is None:
        return None
    without = [i for i in range(len(operands)) if i != fn.ticket]
    avals = [ctx.avals_in[i] for i in without]
    avals_out = [_compat.result_aval(leaf.shape, leaf.dtype, avals) for leaf in leaves]
    results = lower(ctx.replace(avals_in=avals, avals_out=avals_out), *(operands[i] for i in without), fn=joined)
    unused.become(results[:count])
    return results[count:]
