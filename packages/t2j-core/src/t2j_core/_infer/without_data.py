"""Inference by a run without data: on meta tensors, and if that fails on torch's fake tensors."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator

import torch

from .. import _compat
from .._base.errors import T2jError, T2jWarning, warn
from .._signature.signature import Outputs
from .apart import apart
from .call import Call
from .dense import ALWAYS_DENSE
from .draws import Draws
from .failures import FailureKind, first_line, kind_of
from .fake_mode import WatchFake
from .kept_tensors import keeps_tensor
from .meta_mode import NeedsDataError, OnMeta
from .numbers_in_code import numbers_in_code
from .read_outputs import one_run
from .unkeyed import is_random

logger = logging.getLogger("t2j_core")

MANY_BYTES = 1 << 30


@dataclasses.dataclass
class Obstacles:
    """What kept a function from running without data."""

    text: str = ""
    failure: FailureKind | None = None
    numbers: tuple[float, ...] = ()

    def note(self, reason: Exception) -> None:
        """Remember the last reason, and of the first its kind and the numbers in the code that raised it."""
        self.text, self.failure = f" ({first_line(reason)})", self.failure or kind_of(reason)
        self.numbers = self.numbers or numbers_in_code(reason)


@dataclasses.dataclass(frozen=True)
class _Way:
    """A way to run without data: on meta tensors, or on fake ones."""

    device: str = "meta"
    fake: contextlib.AbstractContextManager[object] | None = None
    """The mode of fake tensors; None for meta tensors."""

    def watch(self, draws: Draws) -> OnMeta | WatchFake:
        """The mode for one run."""
        return OnMeta(draws) if self.fake is None else WatchFake(draws)

    def run(self, call: Call, watch: OnMeta | WatchFake) -> Outputs:
        """Run the function on tensors without data."""
        with self.fake or contextlib.nullcontext():
            tensors = [torch.empty(leaf.shape, dtype=leaf.torch_dtype, device=self.device) for leaf in call.operands]
            with watch, _compat.without_addresses():
                return one_run(call, tensors)


def _ways(call: Call) -> Iterator[_Way]:
    yield _Way()
    if _compat.dynamo_is_loaded() or call.nbytes >= MANY_BYTES:
        # Some code asks for fake tensors to skip what needs data. Importing them takes seconds, so a run on data is
        # cheaper unless the data are many, or the import is done.
        yield _Way(str(_compat.torch_device()), _compat.fake_mode())


def infer_without_data(call: Call, obstacles: Obstacles, *, notes_random: bool) -> Outputs | None:
    """The outputs of a run without data; None if each way fails, which `obstacles` then describe."""
    draws = Draws()
    on_meta = OnMeta(draws)
    for way in tuple(_ways(call)):
        watch = on_meta if way.fake is None else way.watch(draws)
        try:
            with apart(call.name):
                outputs = way.run(call, watch)
            if watch.met_non_dense:
                raise NeedsDataError(ALWAYS_DENSE)
            if watch.asked_for_values:
                raise NeedsDataError("it asks for values, and goes on without them")
            keeps_state = on_meta.is_any_kept()
            if keeps_state:
                warn(keeps_tensor(call.name), T2jWarning)
            return dataclasses.replace(
                outputs,
                is_quick=watch is on_meta and on_meta.is_quick(),
                is_small=watch is on_meta and on_meta.is_small(),
                draws_operations=watch is on_meta and on_meta.draws_operations(),
                needs_no_values=True,
                needs_long_indices=_needs_long_indices(outputs, on_meta, is_known=watch is on_meta),
                origin="inferred by a run without data" + obstacles.text,
                is_random=notes_random and draws.any() and _is_random(way, call),
                keeps_state=keeps_state,
            )
        except T2jError as error:
            if not watch.met_non_dense:
                raise
            obstacles.note(error)
        except NeedsDataError as reason:
            obstacles.text, obstacles.failure = f" ({reason})", kind_of(reason)
            break
        except Exception as reason:
            obstacles.note(reason)
            kind = type(reason).__name__
            logger.info(
                "%s cannot run without data (%s: %s): inferring its outputs differently", call.name, kind, reason
            )
    return None


def _needs_long_indices(outputs: Outputs, on_meta: OnMeta, *, is_known: bool) -> bool | None:
    return on_meta.expands_indices or outputs.needs_long_indices or (False if is_known else None)


def _is_random(way: _Way, call: Call) -> bool:
    def run(draws: Draws) -> None:
        watched = lambda *args, **kwargs: draws.returned(call.fn(*args, **kwargs))
        way.run(call.with_function(watched), way.watch(draws))

    return is_random(call.name, run)
