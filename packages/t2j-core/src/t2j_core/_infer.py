"""How outputs are inferred: by running the function without data, once."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import _compat
from ._advice import Kind, first_line, kind_of
from ._apart import apart
from ._dataless import keeps_state
from ._errors import T2jError, T2jWarning, warn
from ._hints import numbers_beside
from ._made_up import Examples
from ._on_meta import NeedsDataError, OnMeta
from ._randomness import Draws, Watch
from ._returned import one_run
from ._runs import Runs, infer_from_data
from ._signature import Leaf, Outputs
from ._unkeyed import is_random

logger = logging.getLogger("t2j_core")

_FAKE_FROM_BYTES = 1 << 30


def infer_outputs(
    call: Callable[..., Any],
    name: str,
    key: tuple[Any, ...],
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
    draws = Draws()
    on_meta = OnMeta(draws)
    modes: list[tuple[Any, str]] = [(on_meta, "meta")]
    if _compat.dynamo_is_loaded() or sum(leaf.nbytes for leaf in operands) >= _FAKE_FROM_BYTES:
        # Some code looks for fake tensors to skip what needs data. Their import takes seconds, so zeros are cheaper
        # unless they are many, or the import is done.
        modes.append((_compat.fake_mode(), str(_compat.torch_device())))
    obstacle = ""
    failure: Kind | None = None
    numbers: tuple[float, ...] = ()
    for mode, device in modes:
        try:
            with apart(name):
                outputs = _run_in(mode, device, call, key, operands, draws)
            if mode is on_meta and on_meta.asked_for_values:
                raise NeedsDataError("it asks for values, and goes on without them")
            keeps = on_meta.kept()
            if keeps:
                warn(keeps_state(name), T2jWarning)
            is_quick = mode is on_meta and on_meta.is_quick()
            origin = "inferred by a run without data" + obstacle
            is_random = (
                notes_random and draws.any() and _is_random_without_data(mode, device, name, call, key, operands)
            )
            needs = on_meta.expands_indices or outputs.needs_long_indices or (False if mode is on_meta else None)
            return dataclasses.replace(
                outputs,
                is_quick=is_quick,
                needs_no_values=True,
                needs_long_indices=needs,
                origin=origin,
                is_random=is_random,
                keeps_state=keeps,
            )
        except T2jError:
            raise
        except NeedsDataError as reason:
            obstacle, failure = f" ({reason})", kind_of(reason)
            break
        except Exception as reason:
            obstacle, failure = f" ({first_line(reason)})", failure or kind_of(reason)
            numbers = numbers or numbers_beside(reason)
            logger.info("%s cannot run without data (%s: %s)", name, type(reason).__name__, reason)
    runs = Runs(call, name, key, operands, numbers=numbers, notes_random=notes_random)
    outputs = infer_from_data(runs, examples, failure)
    on = "examples and made-up data" if any(example is not None for example in examples) else "made-up data"
    return dataclasses.replace(outputs, origin=f"inferred by runs on {on}{obstacle}")


def _run_in(mode: Any, device: str, call: Any, key: tuple[Any, ...], operands: Sequence[Leaf], draws: Draws) -> Outputs:
    with mode if device != "meta" else contextlib.nullcontext():
        tensors = [torch.empty(leaf.shape, dtype=leaf.torch_dtype, device=device) for leaf in operands]
    watch = contextlib.nullcontext() if device == "meta" else Watch(draws)
    with mode, watch, _compat.without_addresses():
        return one_run(call, key, tensors)


def _is_random_without_data(
    mode: Any, device: str, name: str, call: Any, key: tuple[Any, ...], operands: Sequence[Leaf]
) -> bool:
    def run(draws: Draws) -> None:
        watched = lambda *args, **kwargs: draws.returned(call(*args, **kwargs))
        _run_in(OnMeta(draws) if device == "meta" else mode, device, watched, key, operands, draws)

    return is_random(name, run)
