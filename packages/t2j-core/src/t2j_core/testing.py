"""Helpers for tests and benchmarks of code that uses t2j."""

from __future__ import annotations

from ._base.garbage import collect as collect
from ._lowering.native import abi_layout as abi_layout
from ._lowering.native import counters as counters
from ._lowering.native import nothing as noop
from ._run.registry import live_count as live_functions

__all__ = ["abi_layout", "assert_nothing_escaped", "collect", "counters", "live_functions", "noop"]


def assert_nothing_escaped() -> None:
    """Raise `AssertionError` if tensors over XLA's memory outlive the calls that they were lent for."""
    collect(passes=2)
    left = counters()["escaped_calls"]
    if left:
        raise AssertionError(f"{left} finished calls left tensors over memory of XLA behind")
