"""A batch in one run of `torch.func.vmap`, which is watched for what it gets wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from t2j_core import dtype_t2j
from t2j_core.extend import FlatFunction, Leaf, canonical

from .. import _compat
from .._base.decisions import BatchKind, Decisions
from .._workarounds.requires_grad_queries import RequiresGradQueries
from .._workarounds.vmap_fixes import VmapFixes
from .._workarounds.wrong_batching_rules import WrongBatchingRules
from .batch_axes import Dims


class NotFaithfulError(Exception):
    """`torch.func.vmap` would compute something else than the examples one after another."""


class HiddenGradientError(NotFaithfulError):
    """A function that autograd records asks for what `torch.func.vmap` hides from it."""


class AtOnce:
    """`torch.func.vmap`. Its first run is watched for operations that it gets wrong without an error."""

    def __init__(
        self,
        f: FlatFunction,
        results: Sequence[Leaf],
        size: int,
        dims: Dims,
        decisions: Decisions,
        kind: BatchKind,
        *,
        shows_gradients: bool,
    ) -> None:
        self.results, self.size, self.decisions, self.kind = results, size, decisions, kind
        # `f` runs `torch.func.vjp`, which shows what `vmap` hides, except for hooks.
        self.shows_gradients = shows_gradients
        randomness = decisions.options.vmap_randomness or ("same" if decisions.has_key else "error")
        chunk = decisions.options.vmap_chunk_size
        self._how = "torch.func.vmap" if chunk is None else f"torch.func.vmap, {chunk} examples at once"
        if chunk is None:
            self.run = _compat.flat_vmap(f, dims, size, randomness)
        else:
            self.run = torch.func.vmap(f, dims, randomness=randomness, chunk_size=chunk)
        # (is recorded by autograd, is in forward mode) -> the fixes that such runs need, once one was watched.
        self.fixes: dict[tuple[bool, bool], VmapFixes | None] = {}

    def __call__(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        how = is_recorded(x), _compat.in_forward_mode()
        with _compat.silent_loops():
            y = self._run(x, how)
        self.decisions.explain_batch(kind_of_run(self.kind, x), self.size, self._how)
        return tuple(self._as_declared(t, leaf) for t, leaf in zip(y, self.results, strict=True))

    def _run(self, x: Sequence[torch.Tensor], how: tuple[bool, bool]) -> tuple[torch.Tensor, ...]:
        if how not in self.fixes:
            with _compat.as_written():
                return self._first(x, how)
        fixes = self.fixes[how]
        if fixes is None:
            return self.run(*x)
        with _compat.as_written(), fixes:
            return self.run(*x)

    def _first(self, x: Sequence[torch.Tensor], how: tuple[bool, bool]) -> tuple[torch.Tensor, ...]:
        """The first run, which shows what fixes are needed."""
        fixes = VmapFixes(differentiates=any(how) and not self.shows_gradients)
        with fixes:
            y = self._watched(x, how[0])
        if fixes.wrong is not None:
            raise HiddenGradientError(f"`torch.func.vmap` changes the derivative of {fixes.wrong} of equal numbers")
        needed = fixes if fixes.is_needed else None
        if fixes.changes_course:
            with needed or contextlib.nullcontext():
                y = self.run(*x)
        self.fixes[how] = needed
        return y

    def _watched(self, x: Sequence[torch.Tensor], recorded: bool) -> tuple[torch.Tensor, ...]:
        queries = RequiresGradQueries()
        wrong = WrongBatchingRules(differentiated=recorded and self.shows_gradients)
        with queries if recorded else contextlib.nullcontext(), wrong:
            y = self.run(*x)
        if self.shows_gradients:
            asked = "register_hook" if queries.sets_hooks else None
        else:
            asked = queries.decides or queries.hidden or (wrong.attention if recorded else None)
        if asked is not None:
            raise HiddenGradientError(f"`torch.func.vmap` hides `requires_grad`, and the function uses {asked}")
        if wrong.found is not None:
            raise NotFaithfulError(f"it batches {wrong.found} wrongly")
        return y

    def _as_declared(self, y: torch.Tensor, leaf: Leaf) -> torch.Tensor:
        """A result in the dtype of one example: rules of torch may promote, and autocast does not reach them all."""
        if y.shape != (self.size, *leaf.shape):
            raise NotFaithfulError(f"an example is of shape {tuple(y.shape[1:])}, not {leaf.shape}")
        if y.dtype == leaf.torch_dtype or canonical(dtype_t2j(y.dtype)) == leaf.dtype:
            return y
        if _kind_of(y.dtype) != _kind_of(leaf.torch_dtype):
            raise NotFaithfulError(f"an example is {y.dtype}, not {leaf.torch_dtype}")
        return y.to(leaf.torch_dtype)


def is_recorded(x: Sequence[torch.Tensor]) -> bool:
    """Whether autograd records what is done with the tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in x)


def kind_of_run(kind: BatchKind, x: Sequence[torch.Tensor]) -> BatchKind:
    """The kind of a batch that runs on some tensors: whether a value is differentiated shows then."""
    return "recorded value" if kind == "value" and is_recorded(x) else kind


def _kind_of(dtype: torch.dtype) -> str:
    return "complex" if dtype.is_complex else "float" if dtype.is_floating_point else "integer"
