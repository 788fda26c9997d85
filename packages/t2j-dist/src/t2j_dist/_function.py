"""`ShardedFunction`: the wrapper that users hold."""

from __future__ import annotations

import functools
from typing import Any

from t2j_core import TorchFunction
from t2j_core.extend import P, remember, split

from ._builder import ShardedBuilder
from ._plan import Hints, Wanted


class ShardedFunction(TorchFunction[P]):
    """A PyTorch function that JAX can call on sharded arrays; made by `torch2jax`."""

    builder: ShardedBuilder

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        wanted = self.builder.wanted
        if wanted is not None and wanted.in_specs is None and not wanted.is_eager:
            eager = wanted.with_hints(split(args, kwargs)[0], is_eager=True)
            if eager is not wanted:
                return self._for_arrays(eager)(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def _for_arrays(self, wanted: Wanted) -> ShardedFunction[P]:
        known = self._by_hints.get(wanted.hints)
        if known is not None:
            return known
        return remember(self._by_hints, wanted.hints, type(self)(self.builder.for_arrays(wanted)))

    @functools.cached_property
    def _by_hints(self) -> dict[Hints, ShardedFunction[P]]:
        """The same function for eager calls, which JAX compiles for each sharding of the arguments."""
        return {}
