"""How outputs are inferred: by running the function without data, once."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import _compat
from .._base.errors import T2jError, T2jWarning, warn
from .._signature.call_tree import CallTree
from .._signature.signature import Leaf, Outputs, has_empty
from .advice import Kind, first_line, kind_of
from .apart import apart
from .dataless import keeps_state
from .dense import WatchDense
from .hints import numbers_beside
from .made_up import Examples
from .meta_mode import OTHERS, NeedsDataError, OnMeta
from .randomness import Draws, Watch
from .read_outputs import one_run
from .runs import Runs, infer_from_data
from .unkeyed import is_random

logger = logging.getLogger("t2j_core")

_FAKE_FROM_BYTES = 1 << 30


@dataclasses.dataclass
class _Obstacles:
    """What kept a function from running without data."""

    text: str = ""
    failure: Kind | None = None
    numbers: tuple[float, ...] = ()

    def note(self, reason: Exception) -> None:
        self.text, self.failure = f" ({first_line(reason)})", self.failure or kind_of(reason)
        self.numbers = self.numbers or numbers_beside(reason)


def infer_outputs(
    call: Callable[..., Any],
    name: str,
    call_tree: CallTree,
    operands: Sequence[Leaf],
    examples: Examples = (),
    *,
    notes_random: bool = False,
) -> Outputs:
    """Run the function without data, once, and read its outputs off; where that fails, run it on data.

    The data are the examples, if there are any, and made-up values.

    If `notes_random`, a function that draws random numbers is run once more, to tell whether it always does.
    Raises `DataDependentShapeError` where a shape depends on values, and the function's own exception where it raises.
    """
    obstacles = _Obstacles()
    outputs = _without_data(call, name, call_tree, operands, obstacles, notes_random=notes_random)
    if outputs is not None and not _is_to_be_confirmed(outputs, operands):
        return outputs
    runs = Runs(call, name, call_tree, operands, numbers=obstacles.numbers, notes_random=notes_random)
    if outputs is not None:
        agrees = None if _total(operands) >= _FAKE_FROM_BYTES else runs.agrees(outputs, examples)
        if agrees is not False:
            return dataclasses.replace(outputs, is_doubtful=agrees is None)
        obstacles.text = " (a run on data returns something else than one without)"
    outputs = infer_from_data(runs, examples, obstacles.failure)
    on = "examples and made-up data" if any(example is not None for example in examples) else "made-up data"
    return dataclasses.replace(outputs, origin=f"inferred by runs on {on}{obstacles.text}")


def works_on(
    call: Callable[..., Any], name: str, call_tree: CallTree, operands: Sequence[Leaf], examples: Examples
) -> bool:
    """Whether the function runs on the examples."""
    return Runs(call, name, call_tree, operands, numbers=(), notes_random=False).works_on(examples)


def _is_to_be_confirmed(outputs: Outputs, operands: Sequence[Leaf]) -> bool:
    """Whether no call would show that a run without data has told them wrong: XLA drops calls that return nothing.

    A constant may say where the function ran: `x.is_meta`, `x.device`.
    """
    return has_empty(outputs.leaves, operands) or any(static is not None for static in outputs.statics)


def _total(operands: Sequence[Leaf]) -> int:
    return sum(leaf.nbytes for leaf in operands)


def _without_data(
    call: Callable[..., Any],
    name: str,
    call_tree: CallTree,
    operands: Sequence[Leaf],
    obstacles: _Obstacles,
    *,
    notes_random: bool,
) -> Outputs | None:
    """The outputs that a run without data shows; None where it fails for `obstacles`."""
    draws = Draws()
    on_meta = OnMeta(draws)
    modes: list[tuple[Any, str]] = [(on_meta, "meta")]
    if _compat.dynamo_is_loaded() or _total(operands) >= _FAKE_FROM_BYTES:
        # Some code looks for fake tensors to skip what needs data. Their import takes seconds, so zeros are cheaper
        # unless they are many, or the import is done.
        modes.append((_compat.fake_mode(), str(_compat.torch_device())))
    for mode, device in modes:
        seen = on_meta if mode is on_meta else WatchDense()
        try:
            with apart(name):
                outputs = _run_in(mode, device, seen, call, call_tree, operands, draws)
            if seen.met_others:
                raise NeedsDataError(OTHERS)
            if seen.asked_for_values:
                raise NeedsDataError("it asks for values, and goes on without them")
            keeps = on_meta.kept()
            if keeps:
                warn(keeps_state(name), T2jWarning)
            is_random = (
                notes_random and draws.any() and _is_random_without_data(mode, device, name, call, call_tree, operands)
            )
            needs = on_meta.expands_indices or outputs.needs_long_indices or (False if mode is on_meta else None)
            return dataclasses.replace(
                outputs,
                is_quick=mode is on_meta and on_meta.is_quick(),
                needs_no_values=True,
                needs_long_indices=needs,
                origin="inferred by a run without data" + obstacles.text,
                is_random=is_random,
                keeps_state=keeps,
            )
        except T2jError as error:
            if not seen.met_others:
                raise
            obstacles.note(error)
        except NeedsDataError as reason:
            obstacles.text, obstacles.failure = f" ({reason})", kind_of(reason)
            break
        except Exception as reason:
            obstacles.note(reason)
            logger.info("%s cannot run without data (%s: %s)", name, type(reason).__name__, reason)
    return None


def _run_in(
    mode: Any, device: str, seen: Any, call: Any, call_tree: CallTree, operands: Sequence[Leaf], draws: Draws
) -> Outputs:
    with contextlib.ExitStack() as stack:
        if seen is not mode:
            stack.enter_context(mode)
        tensors = [torch.empty(leaf.shape, dtype=leaf.torch_dtype, device=device) for leaf in operands]
        if seen is not mode:
            stack.enter_context(Watch(draws))
        stack.enter_context(seen)
        stack.enter_context(_compat.without_addresses())
        return one_run(call, call_tree, tensors)


def _is_random_without_data(
    mode: Any, device: str, name: str, call: Any, call_tree: CallTree, operands: Sequence[Leaf]
) -> bool:
    def run(draws: Draws) -> None:
        watched = lambda *args, **kwargs: draws.returned(call(*args, **kwargs))
        meta = OnMeta(draws) if device == "meta" else None
        _run_in(meta or mode, device, meta or WatchDense(), watched, call_tree, operands, draws)

    return is_random(name, run)
