"""What a case of the corpus is: code of some package, with the arguments of one call.

A file `cases/PACKAGE.py`, which needs its package, has a function `cases()` that yields `TorchCase` or `JaxCase`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "cases"


@dataclass
class TorchTask:
    """A function or a module, and the arguments of one call. The tensors among them become JAX arrays."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class JaxTask:
    """A program of a JAX library that calls a function, which is given once in torch and once in jnp.

    `program(f)` returns a function of `args`. If `is_exact` is false, small differences of `f` may grow, as where a
    sampler accepts or rejects.
    """

    program: Callable[[Callable[..., Any]], Callable[..., Any]]
    torch_fn: Callable[..., Any]
    jnp_fn: Callable[..., Any]
    args: tuple[Any, ...]


@dataclass(frozen=True)
class TorchCase:
    """A case that native torch judges."""

    name: str
    make: Callable[[], TorchTask]
    mutable: bool = False  # in training mode, with the new buffers among the outputs
    x64: bool = False
    tolerance: float = 1e-4  # of values; ten times that for derivatives


@dataclass(frozen=True)
class JaxCase:
    """A case that the same function in jnp judges, inside a JAX library."""

    name: str
    make: Callable[[], JaxTask]
    x64: bool = False
    tolerance: float = 1e-4


Case = TorchCase | JaxCase


def packages() -> list[str]:
    """The packages that have cases."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def cases_of(package: str) -> Iterator[Case]:
    """The cases of a package."""
    yield from importlib.import_module(f"cases.{package}").cases()
