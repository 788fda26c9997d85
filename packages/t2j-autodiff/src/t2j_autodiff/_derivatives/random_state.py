"""Random numbers that a second run of a function draws once more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


class RandomState:
    """The state of torch's default generators, of the CPU and of one GPU, when this was made."""

    def __init__(self, device: torch.device) -> None:
        self._gpus = [device] if device.type == "cuda" else []
        self._cpu_state = torch.default_generator.get_state()
        self._gpu_states = [torch.cuda.get_rng_state(gpu) for gpu in self._gpus]

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Within, the numbers since then are drawn once more. Afterwards the generators go on where they were."""
        with torch.random.fork_rng(devices=self._gpus):
            torch.default_generator.set_state(self._cpu_state)
            for gpu, state in zip(self._gpus, self._gpu_states, strict=True):
                torch.cuda.set_rng_state(state, gpu)
            yield
