"""What a call leaves behind: warnings, output, and changes of a module or of an array."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from agreement import Mismatch
from t2j_autodiff import T2jWarning


class Watch:
    """Collects warnings and output. Those of native torch, which runs inside `as_judge`, are not stray."""

    def __init__(self) -> None:
        self.native: set[str] = set()
        self.found: dict[str, None] = {}  # in order

    @contextmanager
    def of(self, keep: Callable[[str], Any]) -> Iterator[None]:
        """Collect what the block says."""
        with warnings.catch_warnings(record=True) as told, tempfile.TemporaryFile() as file:
            warnings.simplefilter("always")
            saved = os.dup(1), os.dup(2)
            try:
                sys.stdout.flush(), sys.stderr.flush()
                os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
                yield
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os.dup2(saved[0], 1), os.dup2(saved[1], 2)
                os.close(saved[0]), os.close(saved[1])
                file.seek(0)
                for line in file.read().decode(errors="replace").splitlines():
                    keep(f"output: {line[:160]}")
                for w in told:
                    if not issubclass(w.category, T2jWarning):  # documented: slow batches, random numbers
                        keep(f"{w.category.__name__}: {str(w.message).partition(chr(10))[0][:160]}")

    def as_judge(self) -> Any:
        """The block runs the judge."""
        return self.of(self.native.add)

    def as_library(self) -> Any:
        """The block runs the library."""
        return self.of(self.found.setdefault)

    def check(self) -> None:
        """Raise `Mismatch` if the library said what the judge did not."""
        if stray := [text for text in self.found if text not in self.native]:
            raise Mismatch("; ".join(stray[:3]))


class Snapshot:
    """The state of a function or of a module: its tensors, and everything else that it and its modules hold."""

    def __init__(self, fn: Any, arrays: list[torch.Tensor]) -> None:
        self.fn, self.arrays = fn, arrays
        self._before = self._state()

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {f"args[{i}]": t.detach().clone() for i, t in enumerate(self.arrays)}
        for name, module in self.fn.named_modules() if isinstance(self.fn, torch.nn.Module) else ():
            for key, value in vars(module).items():
                state[f"{name}.{key}"] = list(value) if isinstance(value, dict) else _frozen(value)
                for part in value if isinstance(value, dict) else ():
                    state[f"{name}.{key}[{part!r}]"] = _frozen(value[part])
        return state

    def changes(self) -> list[str]:
        """What differs now."""
        now = self._state()
        names = [name for name in {**self._before, **now} if not _same(self._before.get(name), now.get(name))]
        return [f"{name.lstrip('.')} is changed" for name in names]


def _frozen(value: Any) -> Any:
    """A copy of what may be changed in place, and the identity of what cannot be compared."""
    if isinstance(value, torch.Tensor):
        grad = None if not value.is_leaf or value.grad is None else value.grad.clone()
        return (id(value), value.requires_grad, value._version, grad, value.detach().clone())
    if isinstance(value, dict):
        return {key: _frozen(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set):
        return [type(value), *(_frozen(part) for part in value)]
    return value if isinstance(value, str | int | float | bool | complex | None) else id(value)


def _same(a: Any, b: Any) -> bool:
    """Whether two frozen values are equal, with NaN equal to itself."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
