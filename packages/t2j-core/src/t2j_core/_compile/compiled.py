"""`Compiled`: a flat function that inductor has compiled for one signature."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch

from .. import _compat
from .._base.dtypes import row_of_jax
from .._base.progress import progress
from .._base.turns import turns
from .code import Code
from .refusals import NotCompiledError
from .source import Source
from .tracing import fake_tensors, trace

_ONCE = "It is done once for each signature, and later processes find the code on disk."


class CompiledFunction(abc.ABC):
    """A function of operands and result buffers, which writes into the buffers and returns them."""

    used: tuple[int, ...]
    """The operands that it takes. The others have no effect."""
    draws_without_key: bool

    @abc.abstractmethod
    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run it, on operands and buffers."""


class Compiled(CompiledFunction):
    """A function that was compiled as a whole.

    It is traced and compiled when it is made, which raises any exception where that fails.
    """

    def __init__(self, source: Source, device: torch.device, noted: set[str]) -> None:
        if not source.operands:
            raise NotCompiledError("it takes no arrays")
        self._source, self._noted = source, noted
        code = self._code(device)
        self._on_device = {device: code}
        self.used, self.draws_without_key = code.used, code.draws_without_key
        self._as_bytes = self._sent_as_bytes()

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = list(tensors)
        for index, dtype in self._as_bytes:
            given[index] = given[index].view(dtype)
        device = tensors[0].device
        code = self._on_device.get(device) or self._for_device(device)
        with torch.no_grad():
            code.run(given)
        return tensors[len(self.used) :]

    def _for_device(self, device: torch.device) -> Code:
        """The code for another GPU than the one that the function was compiled for."""
        with turns:
            if device not in self._on_device:
                code = self._code(device)
                if code.used != self.used:
                    raise NotCompiledError(f"{self._source.name} uses other operands on {device}")
                self._on_device[device] = code
        return self._on_device[device]

    def _code(self, device: torch.device) -> Code:
        source = self._source
        with progress("compiling", source.name, _ONCE, self._noted):
            graph = None if source.graph is None else source.graph(device)
            if graph is None:
                graph = trace(source.name, self._as_declared, fake_tensors(source.operands, device))
            return Code(source, graph, device)

    def _as_declared(self, *x: torch.Tensor) -> Sequence[torch.Tensor]:
        """The function on tensors as XLA has them. Raises for results that are not as declared."""
        y = self._source.call(*(t.to(leaf.torch_dtype) for t, leaf in zip(x, self._source.operands, strict=True)))
        for t, leaf in zip(y, self._source.results, strict=True):
            if t.shape != leaf.shape or t.device.type != x[0].device.type or t.layout != torch.strided:
                raise NotCompiledError("it returns other results than those it was declared or inferred with")
        return y

    def _sent_as_bytes(self) -> list[tuple[int, torch.dtype]]:
        leaves = [*(self._source.operands[i] for i in self.used), *self._source.results]
        stored = [row_of_jax(leaf.dtype).torch for leaf in leaves]
        return [(i, dtype) for i, dtype in enumerate(stored) if _compat.crosses_as_bytes(dtype)]
