"""Tracing: the user's function runs once on tensors without data, and its operations become a graph."""

from __future__ import annotations

import contextlib
import functools
import gc
import secrets
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from .. import _compat
from .._base.dtypes import row_of_jax
from .._infer.apart import apart
from .._infer.traced_ahead import traced_ahead
from .._signature.signature import Leaf
from .graphs import may_draw
from .refusals import InTurnError, NotCompiledError, Refusals
from .refuses import Refuses, RefusesMemory

Function = Callable[..., Sequence[torch.Tensor]]


def trace(
    name: str, f: Function, x: Sequence[torch.Tensor], *, joint: bool = False, decomposes: bool = True
) -> GraphModule:
    """The operations of `f` on the fake tensors `x`; with its backward if `joint`.

    Its results share no memory with anything. Random numbers come from the state that torch's generators have when the
    graph runs, keys do not seed them. It `decomposes` operations as the compiler wants them. Raises any exception.

    `torch.compiler.is_compiling()` is false, as in a call. If it fails so, it is tried once more where that is true, as
    in torch's own tracers: libraries ask it before they look at values.
    """
    trace_once = functools.partial(_trace, name, f, x, joint=joint, decomposes=decomposes)
    try:
        return trace_once()
    except InTurnError:
        raise
    except Exception as error:
        try:
            with _compat.said_to_compile():
                return trace_once()
        except Exception:
            raise error from None


def _trace(name: str, f: Function, x: Sequence[torch.Tensor], *, joint: bool, decomposes: bool) -> GraphModule:
    refusals = Refusals()
    watched = _Watched(f, refusals)
    with _traced(name, refusals, decomposes=decomposes) as decompositions:
        graph = _compat.trace_ahead(watched, x, decompositions, joint=joint)
    refusals.raise_first()
    if refusals.sets_state and may_draw(graph):
        raise NotCompiledError(_SEEDS)
    watched.check_that_nothing_is_kept()
    return graph


def fake_tensors(leaves: Sequence[Leaf], device: torch.device, mode: Any = None) -> list[torch.Tensor]:
    """Tensors without data, of the dtypes that JAX stores."""
    with mode or _compat.fixed_shapes():
        return [torch.empty(leaf.shape, dtype=row_of_jax(leaf.dtype).torch, device=device) for leaf in leaves]


@contextlib.contextmanager
def _traced(name: str, refusals: Refusals, *, decomposes: bool) -> Iterator[_compat.Decompositions | None]:
    with (
        apart(name),
        traced_ahead(),
        _compat.without_addresses(),
        _compat.without_onednn(),
        _compat.refusing_seeds(lambda: refusals.new(_SEEDS), refusals.note_state),
        _compat.for_compiler() if decomposes else contextlib.nullcontext() as decompositions,
    ):
        torch.default_generator.manual_seed(secrets.randbits(63))  # `apart` restores the state
        yield decompositions


_SEEDS = "it seeds torch's generators, or reads or changes their state"


class _Watched:
    """A function that is traced. Its results share no memory with anything, and what it cannot do is refused."""

    def __init__(self, f: Function, refusals: Refusals) -> None:
        self._f = f
        self._refusals = refusals
        self._refuses = Refuses(refusals)

    def __call__(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results: list[torch.Tensor] = []
        self._refuses.made += map(weakref.ref, x)
        seed = torch.default_generator.initial_seed()
        with self._refuses, RefusesMemory(self._refusals):
            self._refusals.is_running = True
            with torch.enable_grad():  # as in a call that is not compiled; the tracer turns it off
                y = self._f(*x)
            self._refusals.is_running = False
            for t in y:
                t = t.resolve_conj().resolve_neg()  # the compiler ignores the flags of lazy views
                shares = t._is_view() or any(t is other for other in (*x, *results))
                results.append(t.clone() if shares else t)
        if torch.default_generator.initial_seed() != seed:
            raise self._refusals.new(_SEEDS)
        return tuple(results)

    def _keeps(self) -> bool:
        return any(reference() is not None for reference in self._refuses.made)

    def check_that_nothing_is_kept(self) -> None:
        """Raise if the function keeps a tensor of the trace, as it would one of a call."""
        if self._keeps():
            gc.collect()  # a cycle, as where the `ctx` of a `torch.autograd.Function` holds the result
        if self._keeps():
            raise NotCompiledError("it keeps tensors from one call to the next")
