"""A batch whose examples a compiled function runs one after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .compiled import CompiledFunction


class ExamplesInTurn(CompiledFunction):
    """The compiled function of one example, for each of a batch. Results are written into rows of the buffers."""

    def __init__(self, example: CompiledFunction, dims: Sequence[int | None]) -> None:
        self._example = example
        self.used = example.used
        self.draws_without_key = example.draws_without_key
        self._dims = [dims[i] for i in self.used]

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        n = len(self.used)
        operands, buffers = tensors[:n], tensors[n:]
        for row in range(len(buffers[0])):
            example = (t if dim is None else t[row] for t, dim in zip(operands, self._dims, strict=True))
            self._example(*example, *(buffer[row] for buffer in buffers))
        return buffers
