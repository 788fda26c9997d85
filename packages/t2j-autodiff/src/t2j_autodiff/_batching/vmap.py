"""Flat torch functions over a batch: `jax.vmap` in one call of torch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import torch
from jax.sharding import NamedSharding, PartitionSpec
from t2j_core import PerformanceWarning, dtype_t2j
from t2j_core.extend import (
    Leaf,
    as_written,
    batched_mesh_axes,
    canonical,
    check_example,
    explicit_spec,
    manual_axes,
    reshard,
    storage_uses,
    warn,
)

from .. import _compat
from .._base.decisions import Shared
from .._base.errors import OUT_OF_MEMORY
from .._derivatives.reverse_mode import Flat, first_line
from .._mends.batch_mends import BatchMends
from .._mends.gradient_questions import GradientQuestions
from .._mends.wrong_in_batches import WrongInBatches
from .batch_axes import Dims, LeadingAxes, zeros_of


class _NotFaithfulError(Exception):
    """`torch.func.vmap` would compute something else than the examples one after another."""


class HiddenGradientError(_NotFaithfulError):
    """A function that autograd records asks for what `torch.func.vmap` hides from it."""


def batched(
    f: Flat, results: Sequence[Leaf], size: int, dims: Dims, shared: Shared, *, is_derivative: bool, kind: str = ""
) -> Flat:
    """`f` for `size` examples at once; every output has the examples along axis 0.

    `kind` is "value", "shown", "vjp" or "jvp": what cannot be batched of one may be batched of another. A "record"
    raises where the function asks for what is hidden from it: it can do without.
    """
    options = shared.options
    method = options.vmap_method
    key_is_batched = shared.has_key and dims[0] is not None
    if options.has_leading_axes:
        if isinstance(f, LeadingAxes):
            return f.over(size, dims)
        if not is_derivative:
            return LeadingAxes(f, ((size, dims),), results, expand=method == "broadcast_all")
        method = "auto"  # a derivative would be summed over the examples
    if size == 0:
        return lambda *x: zeros_of(results, (0,), x[0].device)
    in_turn = _InTurn(f, size, dims, shared)
    if method == "sequential":
        return in_turn
    if method == "auto" and key_is_batched and options.vmap_randomness is None:
        return in_turn  # each example of a batch of keys draws the numbers that it draws alone
    kind = kind or ("derivative" if is_derivative else "value")
    at_once = _AtOnce(f, results, size, dims, shared, is_derivative=is_derivative)
    return at_once if method == "vmap" else _AtOnceOrInTurn(at_once, in_turn, kind)


def in_turn(f: Flat, size: int, dims: Dims, shared: Shared) -> Flat:
    """`f` for `size` examples, one after another; every output has the examples along axis 0."""
    return _InTurn(f, size, dims, shared)


class _InTurn:
    """One example after another."""

    def __init__(self, f: Flat, size: int, dims: Dims, shared: Shared) -> None:
        self.f, self.size, self.dims, self.shared = f, size, dims, shared

    def __call__(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answers = [self._run(x, i) for i in range(self.size)]
        return tuple(torch.stack(column) for column in zip(*answers, strict=True))

    def _run(self, x: Sequence[torch.Tensor], i: int) -> tuple[torch.Tensor, ...]:
        # Of its own memory, not a view: some operations read the memory from its beginning.
        example = [t if d is None else t[i].clone() for t, d in zip(x, self.dims, strict=True)]
        if self.shared.lending is None or _compat.in_transform():
            return self.f(*example)
        is_watched = [t.requires_grad for t in example]
        twins = [t.untyped_storage() for t in example]
        uses = list(map(storage_uses, twins))
        answer = self.f(*example)
        del example
        own = {t.untyped_storage()._cdata for t in answer}  # results may lie in it
        for k in range(len(self.shared.paths)):
            if self.dims[k] is not None:  # the call itself checks what has no batch axis
                tells = not is_watched[k] and twins[k]._cdata not in own
                check_example(self.shared.lending, k, twins[k], x[k][i], uses[k] - 1 if tells else None)
        return answer


class _AtOnce:
    """`torch.func.vmap`. Its first run is watched for operations that it gets wrong without an error."""

    def __init__(
        self, f: Flat, results: Sequence[Leaf], size: int, dims: Dims, shared: Shared, *, is_derivative: bool
    ) -> None:
        self.results, self.size, self.shared = results, size, shared
        self.shows_gradients = is_derivative  # within, `torch.func.vjp` shows what `vmap` hides, but for hooks
        randomness = shared.options.vmap_randomness or ("same" if shared.has_key else "error")
        chunk = shared.options.vmap_chunk_size
        self.run = torch.func.vmap(f, dims, randomness=randomness, chunk_size=chunk)
        # By whether it is recorded by autograd, and is in forward mode: whether it was watched, and the mends it needs.
        self.mends: dict[tuple[bool, bool], BatchMends | None] = {}

    def __call__(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        how = is_recorded(x), _compat.in_forward_mode()
        with _compat.silent_loops():
            answers = self._run(x, how)
        return tuple(self._as_declared(y, leaf) for y, leaf in zip(answers, self.results, strict=True))

    def _run(self, x: Sequence[torch.Tensor], how: tuple[bool, bool]) -> tuple[torch.Tensor, ...]:
        if how not in self.mends:
            with as_written():
                return self._first(x, how)
        mends = self.mends[how]
        if mends is None:
            return self.run(*x)
        with as_written(), mends:
            return self.run(*x)

    def _first(self, x: Sequence[torch.Tensor], how: tuple[bool, bool]) -> tuple[torch.Tensor, ...]:
        """The first run, which shows what mends are needed."""
        mends = BatchMends(differentiates=any(how) and not self.shows_gradients)
        with mends:
            answers = self._watched(x, how[0])
        if mends.wrong is not None:
            raise HiddenGradientError(f"`torch.func.vmap` changes the derivative of {mends.wrong} of equal numbers")
        needed = mends if mends.is_needed else None
        if mends.changes_course:
            with needed or contextlib.nullcontext():
                answers = self.run(*x)
        self.mends[how] = needed
        return answers

    def _watched(self, x: Sequence[torch.Tensor], recorded: bool) -> tuple[torch.Tensor, ...]:
        questions = GradientQuestions()
        wrong = WrongInBatches(differentiated=recorded and self.shows_gradients)
        with questions if recorded else contextlib.nullcontext(), wrong:
            answers = self.run(*x)
        if self.shows_gradients:
            asked = "register_hook" if questions.hooks else None
        else:
            asked = questions.decides or questions.hidden or (wrong.attention if recorded else None)
        if asked is not None:
            raise HiddenGradientError(f"`torch.func.vmap` hides `requires_grad`, and the function uses {asked}")
        if wrong.found is not None:
            raise _NotFaithfulError(f"it batches {wrong.found} wrongly")
        return answers

    def _as_declared(self, y: torch.Tensor, leaf: Leaf) -> torch.Tensor:
        """An output in the dtype of one example: rules of torch may promote, and autocast does not reach them all."""
        if y.shape != (self.size, *leaf.shape):
            raise _NotFaithfulError(f"an example is of shape {tuple(y.shape[1:])}, not {leaf.shape}")
        if y.dtype == leaf.torch_dtype or canonical(dtype_t2j(y.dtype)) == leaf.dtype:
            return y
        if _kind_of(y.dtype) != _kind_of(leaf.torch_dtype):
            raise _NotFaithfulError(f"an example is {y.dtype}, not {leaf.torch_dtype}")
        return y.to(leaf.torch_dtype)


class _AtOnceOrInTurn:
    """`torch.func.vmap`, until it fails."""

    def __init__(self, at_once: _AtOnce, in_turn: _InTurn, kind: str) -> None:
        self.at_once, self.in_turn, self.kind = at_once, in_turn, kind

    def __call__(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shared = self.at_once.shared
        kind = "recorded value" if self.kind == "value" and is_recorded(x) else self.kind
        if shared.vmap_failure(kind) is not None:
            return self.in_turn(*x)
        try:
            return self.at_once(*x)
        except Exception as error:
            if _compat.in_transform():  # the outermost batch decides
                raise
            is_short = isinstance(error, OUT_OF_MEMORY)
            if self.kind == "record" and (is_short or isinstance(error, HiddenGradientError)):  # it can be left out
                raise
            if shared.options.vmap_randomness == "error" and "randomness" in str(error):  # which was asked for
                raise
            reason = str(error) if isinstance(error, _NotFaithfulError) else first_line(error)
        answers = self.in_turn(*x)
        is_known = reason in shared.vmap_failures.values()
        if not is_short:
            shared.vmap_failures["value" if kind == "record" else kind] = reason
        if is_known:
            return answers
        warn(_slow(shared.name, self.at_once.size, reason, is_short=is_short), PerformanceWarning)
        return answers


def is_recorded(x: Sequence[torch.Tensor]) -> bool:
    """Whether autograd records what is done with the tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in x)


def _kind_of(dtype: torch.dtype) -> str:
    return "complex" if dtype.is_complex else "float" if dtype.is_floating_point else "integer"


def over_devices(call: Callable[[int, Sequence[Any]], Any], size: int, operands: Sequence[Any], dims: Dims) -> Any:
    """`call(size, operands)`; where the batch is sharded over Explicit mesh axes, each device runs its own examples."""
    specs = [explicit_spec(jax.typeof(x)) for x in operands]
    split = next((spec[0] for spec, d in zip(specs, dims, strict=True) if spec and d == 0), None)
    inside = [spec if d is None else spec[1:] for spec, d in zip(specs, dims, strict=True) if spec]
    if split is None or any(part is not None for spec in inside for part in spec):  # of an example: not for one device
        return call(size, operands)
    mesh = next(jax.typeof(x).sharding.mesh for x, spec in zip(operands, specs, strict=True) if spec)
    axes = split if isinstance(split, tuple) else (split,)
    count = math.prod(mesh.shape[axis] for axis in axes)
    own = [PartitionSpec() if d is None else PartitionSpec(split) for d in dims]
    operands = [
        x if spec or d is None else reshard(x, NamedSharding(mesh, wanted))
        for x, spec, d, wanted in zip(operands, specs, dims, own, strict=True)
    ]
    with batched_mesh_axes():
        return jax.shard_map(
            lambda *shards: tuple(call(size // count, shards)),
            mesh=mesh if jax.sharding.get_abstract_mesh().empty else None,
            in_specs=tuple(own),
            out_specs=PartitionSpec(split),
            axis_names=manual_axes(mesh, axes),
        )(*operands)


def _slow(name: str, size: int, reason: str, *, is_short: bool) -> str:
    remedy = "`vmap_chunk_size=` to run fewer at once" if is_short else '`vmap_method="sequential"` to choose that'
    return (
        f"`torch.func.vmap` cannot batch {name} ({reason}), so the {size} examples run one after another. "
        f"Pass {remedy}."
    )
