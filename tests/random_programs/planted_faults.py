"""Silent faults that t2j has had, each planted again. The property must find every one within its budget.

    python tests/random_programs/planted_faults.py --examples 600

prints after how many examples each was found, and fails if one was not.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, given, settings
from judged_programs import RANDOMS, check, draw_case
from t2j_autodiff._residuals import backward, store
from t2j_autodiff._workarounds import norms, wrong_batching_rules
from t2j_autodiff._wrap import nondiff
from t2j_core._signature.call_tree import CallTree, Static
from t2j_core._wrap.routes import Routes

Fault = Callable[[], AbstractContextManager[Any]]


def misaligned_mask() -> AbstractContextManager[Any]:
    """`nondiff_mask` counts constants between the arrays as arrays."""
    masked = nondiff._masked

    def planted(name: str, mask: object, call_tree: CallTree) -> list[bool]:
        arrays = sum(static is None for static in call_tree.statics)
        every = call_tree._replace(statics=(None,) * len(call_tree.statics))
        return masked(name, mask, every)[:arrays]

    return patch.object(nondiff, "_masked", planted)


def forgotten_torch_dtypes() -> AbstractContextManager[Any]:
    """An eager call runs a form that was compiled for tensors of another dtype."""
    form, first = Routes._form, {}

    def planted(self: Routes, call_tree: CallTree, dtypes: Any, arrays: Sequence[Any]) -> Any:
        return form(self, call_tree, first.setdefault((id(self), call_tree), dtypes), arrays)

    return patch.object(Routes, "_form", planted)


def equal_constants() -> AbstractContextManager[Any]:
    """Constants of equal value are one constant, whatever their type: 1, 1.0 and True."""
    same = patch.object(Static, "__eq__", lambda a, b: isinstance(b, Static) and a.value == b.value)
    return both(same, patch.object(Static, "__hash__", lambda a: hash(a.value)))


def signless_zeros() -> AbstractContextManager[Any]:
    """0.0 and -0.0 are one constant."""
    return patch.object(Static, "of", lambda value: Static(type(value), value, value))


def newest_graph() -> AbstractContextManager[Any]:
    """A backward takes the autograd graph that was recorded last."""

    def planted(self: store.GraphStore, shelf: store.Shelf, number: int) -> Any:
        newest = next(reversed(shelf), None)
        graph = shelf.pop(newest, None)
        self.forget(newest)
        return graph

    return patch.object(store.GraphStore, "take", planted)


def unconjugated_cotangents() -> AbstractContextManager[Any]:
    """The backward of a kept graph takes JAX's cotangents for torch's, which are their conjugates."""
    return patch.object(backward._compat, "conj", lambda t: t)


def wrong_batches_of_distances() -> AbstractContextManager[Any]:
    """Torch batches the backward of `cdist`, where most results are zero then."""
    return both(
        patch.object(wrong_batching_rules, "_WRONG", set()), patch.object(wrong_batching_rules, "_WRONG_NODES", set())
    )


def wrong_second_derivatives_of_norms() -> AbstractContextManager[Any]:
    """Torch differentiates its own weight norm twice."""
    return patch.object(norms, "_FORMULAS", {})


def nothing() -> AbstractContextManager[Any]:
    """No fault: what the property finds then is a fault that is not planted."""
    return contextlib.nullcontext()


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        misaligned_mask,
        forgotten_torch_dtypes,
        equal_constants,
        signless_zeros,
        newest_graph,
        unconjugated_cotangents,
        wrong_batches_of_distances,
        wrong_second_derivatives_of_norms,
    )
}


@contextlib.contextmanager
def both(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    """Several patches as one."""
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def examples_until_found(fault: Fault, most: int) -> int | None:
    """How many examples the property needs to fail with a fault planted; None if it holds for `most`."""
    tried, found = 0, None

    @settings(
        max_examples=most,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(RANDOMS)
    def search(r: Any) -> None:
        nonlocal tried, found
        tried += 1
        try:
            check(draw_case(r))
        except Exception:  # an error of JAX or torch is not silent, but it tells of the fault
            found = found or tried  # hypothesis runs a failing example again
            raise Found from None

    with fault(), contextlib.suppress(Found):
        search()
    return found


class Found(Exception):
    """The property has failed."""


def main() -> None:
    """Plant the faults one at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="fault", help=", ".join(FAULTS))
    parser.add_argument("--examples", type=int, default=600)
    options = parser.parse_args()
    missed = []
    for name in options.faults or FAULTS:
        begin = time.perf_counter()
        fault = nothing if name == "nothing" else FAULTS[name]
        tried = examples_until_found(fault, options.examples)
        print(f"{name:35} {tried or 'not found':>10} {time.perf_counter() - begin:8.1f} s", flush=True)
        missed += [name] * (tried is None)
    sys.exit(f"not found: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
