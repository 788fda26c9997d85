"""t2j-autodiff, which is optional: with it sharded calls can be differentiated and batched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from t2j_core.extend import CallBuilder, OptionGroup, Options, P, option_names

from ._function import ShardedFunction
from ._options import Keywords

try:
    from t2j_autodiff import DifferentiableFunction
    from t2j_autodiff.extend import DifferentiableBuilder, DiffOptions
except ModuleNotFoundError as error:
    if error.name != "t2j_autodiff":
        raise
    IS_INSTALLED = False
else:
    IS_INSTALLED = True

OPTIONS_IF_MISSING = tuple(name for name in Keywords.__annotations__ if name not in option_names(Options))
"""The options of t2j-autodiff, to distinguish them from misspelt ones where it is not installed."""

OPTIONS: tuple[str, ...] = OPTIONS_IF_MISSING
OPTION_GROUPS: tuple[type[OptionGroup], ...] = (Options,)
function_class: type[ShardedFunction[Any]] = ShardedFunction

if IS_INSTALLED:
    OPTIONS = option_names(DiffOptions)
    OPTION_GROUPS = (DiffOptions, Options)

    class DifferentiableShardedFunction(ShardedFunction[P], DifferentiableFunction[P]):
        """A `ShardedFunction` that JAX can differentiate and batch; made by `torch2jax`."""

    function_class = DifferentiableShardedFunction


def builder_of(fn: Callable[..., Any], options: Options, of_autodiff: Mapping[str, Any]) -> CallBuilder:
    """What makes calls of `fn` on one shard. Raises `ImportError` for options that need t2j-autodiff."""
    if IS_INSTALLED:
        return DifferentiableBuilder(fn, options, DiffOptions(**of_autodiff))
    for name, value in of_autodiff.items():
        if not (name == "depth" and isinstance(value, int) and value == 0):
            raise ImportError(
                f"`{name}` needs t2j-autodiff, which is not installed. Install it with "
                '`pip install "t2j-dist[autodiff]"`, or wrap with `depth=0` for calls without derivatives.',
                name="t2j_autodiff",
            )
    return CallBuilder(fn, options)
