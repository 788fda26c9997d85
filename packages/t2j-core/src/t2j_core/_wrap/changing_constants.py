"""Python numbers that change from call to call: each is a constant, so each call has a new signature and compiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .._base.errors import PerformanceWarning, warn
from .._signature.call_tree import CallTree
from .._signature.signature import Leaf

_MANY = 16
_MOST_GROUPS = 256


@dataclass
class _Group:
    """Signatures that differ in numbers only."""

    first: dict[str, Any]
    count: int = 0
    changing: dict[str, None] = field(default_factory=dict)  # the names of those numbers, in order


class ChangingConstants:
    """Counts the signatures of a function that differ in numbers only, and warns once if there are many."""

    def __init__(self) -> None:
        self._groups: dict[Any, _Group] | None = {}

    def note(self, name: str, call_tree: CallTree, operands: Sequence[Leaf]) -> None:
        """Count a new signature."""
        if self._groups is None:
            return
        structure, statics = call_tree
        given = call_tree.numbers()
        if not given:
            return
        rest = tuple(s.kind if s is not None and s.kind in (int, float, complex) else s for s in statics)
        group = self._groups.setdefault((structure, rest, tuple(operands)), _Group(given))
        group.count += 1
        group.changing.update((path, None) for path, value in given.items() if value != group.first[path])
        if group.count > _MANY:
            self._groups = None
            _warn(name, list(group.changing))
        elif len(self._groups) > _MOST_GROUPS:
            self._groups.pop(next(iter(self._groups)))


def _warn(name: str, paths: list[str]) -> None:
    named = ", ".join(paths) or "a number"
    warn(
        f"{name} was compiled {_MANY + 1} times, because {named} changes from call to call: a Python number is a "
        "constant of the compiled program. Pass it as an array: `jnp.asarray(...)`.",
        PerformanceWarning,
    )
