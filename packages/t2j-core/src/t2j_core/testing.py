"""Helpers for tests and benchmarks of code that uses t2j."""

from __future__ import annotations

from ._base import garbage
from ._lowering.native import abi_layout as abi_layout
from ._lowering.native import counters as counters
from ._lowering.native import nothing as noop
from ._run.in_flight import release_finished
from ._run.registry import live_count as live_functions

__all__ = ["abi_layout", "assert_nothing_escaped", "collect", "counters", "live_functions", "noop"]


def collect(passes: int = 1) -> None:
    """Release the functions that have run, and collect all garbage, also while another thread collects.

    A second pass collects what finalizers of the first have released.
    """
    release_finished()
    garbage.collect(passes)


def assert_nothing_escaped() -> None:
    """Raise `AssertionError` if tensors over XLA's memory outlive the calls that they were lent for."""
    collect(passes=2)
    left = counters()["escaped_calls"]
    if left:
        raise AssertionError(f"{left} finished calls left tensors over memory of XLA behind")
