"""The errors for calls that a program cannot make."""

from __future__ import annotations

from .. import _compat
from .._base.errors import PerformanceWarning, ShardingError, TransformError, describe
from .._run.lending import Lending
from .._run.torch_fn import TorchFn


def sharded_operand(fn: TorchFn, index: int, operand: _compat.ShapedArray, spec: object) -> ShardingError:
    """The error for an operand that is sharded over Explicit mesh axes."""
    return ShardingError(
        describe(
            f"{fn.lending.path(index)} of {fn.lending.name} is sharded over Explicit mesh axes, but a torch "
            "call runs on whole arrays.",
            expected="a replicated operand, or a call inside `jax.shard_map`",
            got=f"{operand.str_short(True)} with spec {spec}",
            remedy="Call inside `jax.shard_map`, `jax.reshard` the operand first, or wrap with `t2j_dist.torch2jax`.",
        )
    )


def unsummed_operand(fn: TorchFn, index: int, operand: _compat.ShapedArray, axes: frozenset[str]) -> ShardingError:
    """The error for an operand that is a sum over mesh axes which is not computed yet, or has such a gradient."""
    over = ", ".join(sorted(axes))
    return ShardingError(
        describe(
            f"{fn.lending.path(index)} of {fn.lending.name} is a sum over mesh axes ({over}) that is not computed yet, "
            "or has such a gradient. A torch call cannot run on the terms.",
            expected="an operand without `unreduced`, and outside of `jax.shard_map` without `reduced`",
            got=operand.str_short(True),
            remedy="Sum it first: with `jax.lax.psum` inside `jax.shard_map`, with `jax.reshard` elsewhere.",
        )
    )


def partly_manual(fn: TorchFn) -> ShardingError:
    """The error for a call with a side effect inside a `jax.shard_map` over some of the mesh axes."""
    return ShardingError(
        describe(
            f"{fn.lending.name} has `has_side_effect=True` and is called inside a `jax.shard_map` over some of the "
            "mesh axes.",
            expected="a `jax.shard_map` over all axes of the mesh, or none, so that it is clear which devices run it",
            remedy="Leave out `axis_names`, or wrap without `has_side_effect`.",
        )
    )


def in_reducer(fn: TorchFn, caller: str) -> TransformError:
    """The error for a call in the function of a reduction, which XLA compiles into a kernel."""
    return TransformError(
        describe(
            f"{fn.lending.name} is called in the function of `{caller}`, which XLA applies to single numbers "
            "inside of a kernel.",
            expected="operations that XLA can compile there; a custom call, as of a torch function, ends the process",
            remedy="Reduce with `jax.lax.associative_scan`, `jax.lax.scan` or `jnp.frompyfunc(f, 2, 1).reduce`, apply "
            "`f` to `x[...]` and set the result, or call a torch function that reduces by itself.",
        )
    )


def warn_not_captured(lending: Lending, reason: str) -> None:
    """Warn, once for each wrapped function, that XLA does not capture its calls."""
    text = f"{lending.name} cannot be in a command buffer ({reason}). It runs as without `command_buffer=True`."
    lending.warn_once(text, PerformanceWarning, "not captured")


def no_taylor_series(fn: TorchFn) -> TransformError:
    """The error for `jax.experimental.jet` of a call."""
    return TransformError(
        describe(
            f"{fn.lending.name} has no Taylor series: `jax.experimental.jet` does not know torch functions.",
            remedy="Nest `jax.jvp` for higher derivatives along a direction, or use `jax.hessian`.",
        )
    )
