"""`ShardedFunction`: the wrapper that users hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t2j_core import TorchFunction
from t2j_core.extend import P, remember, split

from ._builder import ShardedBuilder
from ._wanted import Hints, Wanted


class ShardedFunction(TorchFunction[P]):
    """A PyTorch function that JAX can call on sharded arrays; made by `torch2jax`."""

    builder: ShardedBuilder

    def __init__(
        self, builder: ShardedBuilder, examples: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None
    ) -> None:
        self._by_hints: dict[Hints, ShardedFunction[P]] = {}  # for eager calls, by the shardings of their arguments
        super().__init__(builder, examples)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        wanted = self.builder.wanted
        if wanted is not None and wanted.in_specs is None and not wanted.is_eager:
            eager = wanted.with_hints(split(args, kwargs)[0], is_eager=True)
            if eager is not wanted:
                return self._for_arrays(eager)(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def _for_arrays(self, wanted: Wanted) -> ShardedFunction[P]:
        """The same function with compiled forms of its own, for arrays of these shardings."""
        known = self._by_hints.get(wanted.hints)
        if known is not None:
            return known
        return remember(self._by_hints, wanted.hints, type(self)(self.builder.for_arrays(wanted)))
