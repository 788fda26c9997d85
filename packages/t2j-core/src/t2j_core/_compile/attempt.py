"""`Attempt`: whether a function is compiled, which is decided once, where its first call is lowered."""

from __future__ import annotations

import torch

from .._base.errors import T2jWarning, warn
from .._base.turns import turns
from .._infer.unkeyed import draws_without_key
from .compiled import Compiled, CompiledFunction
from .in_turn import ExamplesInTurn
from .refusals import InTurnError, NotCompiledError, reason_of, warn_not_compiled
from .source import Source


class Attempt:
    """The one attempt to compile a function."""

    def __init__(self, source: Source, noted: set[str]) -> None:
        self._source, self._noted = source, noted
        self.compiled: CompiledFunction | None = None
        self.reason: str | None = None
        """Why the function is not compiled, once that was tried."""

    def run(self, device: torch.device) -> CompiledFunction | None:
        """The compiled function; None, with a warning the first time, if it cannot be. Other threads wait."""
        if self.compiled is None and self.reason is None:
            with turns:
                if self.compiled is None and self.reason is None:
                    self._compile(device)
                    if self.reason is not None:
                        warn_not_compiled(self._source.name, self.reason, self._noted)
        return self.compiled

    def _compile(self, device: torch.device) -> None:
        try:
            if self._source.obstacle is not None:
                raise NotCompiledError(self._source.obstacle)
            self.compiled = self._compiled(device)
        except Exception as error:  # the user's function may raise anything, and so may the compiler
            self.reason = reason_of(error)
            return
        if self.compiled.draws_without_key and "random" not in self._noted:
            self._noted.add("random")
            warn(draws_without_key(self._source.name), T2jWarning)

    def _compiled(self, device: torch.device) -> CompiledFunction:
        source = self._source
        try:
            if source.runs_in_turn:
                raise InTurnError
            return Compiled(source, device, self._noted)
        except InTurnError:
            if source.example is None:
                raise
        example, dims = source.example()
        compiled = example.compile(device)
        if compiled is None:
            raise NotCompiledError("the function of one example is not compiled")
        return ExamplesInTurn(compiled, dims)
